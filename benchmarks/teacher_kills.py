"""Kills of a run and of its teacher's server: python -m benchmarks.teacher_kills --kills=10

`configs/tiny.py` is trained with a teacher behind `python -m zppo_jax.serve`, and records it. At random moments the
trainer and the server get SIGKILL, each --kills times in random order, and are started again; the server also stays
away for a random while, so that some steps miss it. When the run is done, it is repeated from its recording, without a
teacher and without kills. Metrics, samples, parameters, optimiser, data position and replay buffer must equal, to the
bit. Prints a line for each kill, the misses of the run, and the result; the exit status is 0 if all are equal.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import runs
from tests.remote.processes import OurServer
from zppo_jax.files import SHIPPED

SERVER_FLAGS = ["--num_slots=32", "--max_pixels=4096", "--max_prompt_tokens=512", "--max_new_tokens=16"]
MODEL = "teacher"
LONGEST_AWAY = 8.0  # seconds


class Children:
    """The server and the trainer of a run, as processes."""

    def __init__(self, folder: Path, num_steps: int) -> None:
        self.workdir, self.answers, self._log = folder / "run", folder / "answers", folder / "log.txt"
        self.num_steps, self.server = num_steps, OurServer(SHIPPED / MODEL, SERVER_FLAGS)
        self.server.start()
        self.server.wait()
        self.trainer = self.train(self.workdir, *self._served())

    def _served(self) -> list[str]:
        return [f"teacher.path={self.server.url}", f"teacher.model={MODEL}", f"teacher.record={self.answers}"]

    def train(self, workdir: Path, *keys: str) -> subprocess.Popen[bytes]:
        """Starts the command, or continues it."""
        steps = (f"num_steps={self.num_steps}", f"eval.every={self.num_steps}", "eval.num_questions=64")
        flags = [f"--config.{key}" for key in (*steps, "checkpoint.every=3", "teacher.deadline_seconds=10", *keys)]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "zppo_jax.main", "--config=configs/tiny.py", f"--workdir={workdir}", *flags],
                cwd=runs.ROOT, env=os.environ | {"PYTHONPATH": str(runs.ROOT), "JAX_PLATFORMS": "cpu"},
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def rows(self) -> int:
        """The number of steps that are written."""
        file = self.workdir / "metrics.jsonl"
        return max(file.read_bytes().count(b"\n") - 1, 0) if file.exists() else 0

    def reach(self, step: int) -> None:
        """Waits until so many steps are written, or the run has ended."""
        while self.rows() < step and self.trainer.poll() is None:
            time.sleep(0.02)

    def kill_trainer(self) -> None:
        self.trainer.kill()
        self.trainer.wait()
        self.trainer = self.train(self.workdir, *self._served())

    def kill_server(self, away: float) -> None:
        self.server.stop()
        time.sleep(away)
        self.server.start()

    def finish(self) -> None:
        """Ends the run; raises SystemExit if it did not end well."""
        code = self.trainer.wait()
        self.server.stop()
        if code:
            sys.exit(f"the run did not end well ({code}): {self._log.read_text()[-2000:]}")

    def equals_its_recording(self) -> bool:
        """Repeats the run from its recording; returns whether it ends with the same bits."""
        again = self.workdir.with_name("again")
        if self.train(again, f"teacher.path=recorded:{self.answers}").wait():
            sys.exit(f"the repetition did not end well: {self._log.read_text()[-2000:]}")
        runs.assert_same_end(self.workdir, again, self.num_steps)
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    rng, victims = random.Random(flags.seed), ["trainer", "server"] * flags.kills
    rng.shuffle(victims)
    with tempfile.TemporaryDirectory() as folder:
        children = Children(Path(folder), num_steps=len(victims) + 4)
        for number, victim in enumerate(victims, 1):
            children.reach(number)
            time.sleep(rng.random())
            at, away = children.rows(), LONGEST_AWAY * rng.random()
            children.kill_trainer() if victim == "trainer" else children.kill_server(away)
            print(f"{number}: the {victim} killed after {at} steps", flush=True)
        children.finish()
        rows = runs.metrics(children.workdir)[1:]
        asked, missed = (sum(row[f"teacher/{name}"] for row in rows) for name in ("asked", "unanswered"))
        print(
            f"{missed} of {asked} questions were not answered; {sum(row['zppo/bcq_groups'] for row in rows)} BCQ groups"
        )
        equal = children.equals_its_recording()
    print("equal to its recording, to the bit" if equal else "NOT EQUAL")
    sys.exit(not equal)


if __name__ == "__main__":
    main()
