"""Kills of real runs: python -m benchmarks.kills --kills=20

A small run (tests/runs.py) is trained once without a disturbance. Then, for each kill, a run of the same command gets
SIGKILL at a random moment after its first checkpoint, and the command is run again, to the end. Metrics, samples,
parameters, optimiser, data position and replay buffer must equal those of the undisturbed run, to the bit, and no files
may be left over. Prints one line per kill and the count; the exit status is 0 if all are equal.

Moments are drawn with --seed over the time that a run takes from its first checkpoint to its end. A run that ends
before its moment was not killed and does not count; the next moments are drawn from the time that it took. The models
and compiled programs of all runs stay in --folder, if one is given.

Each run is a process forked from this one, which has imported everything and uses no device: a start takes a second.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import jax

from tests import runs
from zppo_jax import main as command_line

NUM_STEPS = 8
CHANGES: dict[str, Any] = {"num_steps": NUM_STEPS, "checkpoint__every": 2, "eval__every": 4, "checkpoint__keep": 3}
LIMIT_SECONDS = 1200
FORK = multiprocessing.get_context("fork")


class Runs:
    """The folder of all runs: the model they start from, compiled programs, output."""

    def __init__(self, folder: Path) -> None:
        self._start, self._cache, self._log = folder / "start", folder / "xla", folder / "log.txt"
        self.straight = folder / "straight"
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(runs.ROOT)
        jax.config.update("jax_platforms", "cpu")
        shutil.rmtree(self.straight, ignore_errors=True)
        if not (self._start / "config.json").exists():
            self._finished(self.process(runs.train_start, self._start))

    def process(self, action: Callable[..., Any], *arguments: Any) -> ForkProcess:
        """Starts a process that runs `action`."""

        def act() -> None:
            log = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.dup2(log, 1)
            os.dup2(log, 2)
            with runs.quick_compilation(self._cache):
                action(*arguments)

        process = FORK.Process(target=act)
        process.start()
        return process

    def begun(self, workdir: Path) -> ForkProcess:
        """Starts the command, and waits until its first checkpoint is complete."""
        sys.argv = ["zppo_jax.main", *runs.arguments(self._start, workdir, **CHANGES)]
        process = self.process(command_line.main)
        while process.is_alive() and not (workdir / "checkpoints" / "2").is_dir():
            time.sleep(0.005)
        return process

    def undisturbed(self) -> float:
        """Trains the run, which compiles before its first checkpoint; returns the seconds from that to its end."""
        process, began = self.begun(self.straight), time.monotonic()
        self._finished(process)
        return time.monotonic() - began

    def killed(self, workdir: Path, seconds: float) -> str | float:
        """Kills a run `seconds` after its first checkpoint; returns what it left, or its time if that was less."""
        shutil.rmtree(workdir, ignore_errors=True)
        process, began = self.begun(workdir), time.monotonic()
        process.join(seconds)
        process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            return time.monotonic() - began
        names = sorted(path.name for path in (workdir / "checkpoints").iterdir())
        *rows, half = (workdir / "metrics.jsonl").read_bytes().split(b"\n")
        return f"{len(rows) - 1} steps written{' and half a row' if half else ''}; checkpoints {' '.join(names)}"

    def continues_alike(self, workdir: Path) -> bool:
        """Runs the same command again, to the end; returns whether everything equals the undisturbed run."""
        self._finished(self.begun(workdir))
        left = [path for path in workdir.rglob("*") if path.name.endswith((".tmp", "-tmp")) or "probe-" in path.name]
        comparison = self.process(runs.assert_same_end, workdir, self.straight, NUM_STEPS)
        comparison.join(LIMIT_SECONDS)
        return comparison.exitcode == 0 and not left

    def _finished(self, process: ForkProcess) -> None:
        process.join(LIMIT_SECONDS)
        if process.exitcode != 0:
            process.kill()
            sys.exit(f"a run did not end well ({process.exitcode}): {self._log.read_text()[-2000:]}")


def main() -> None:
    """Prints a line for each kill, and the number of runs that continued to the same bits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    flags = parser.parse_args()
    rng, equal, done = random.Random(flags.seed), 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = (flags.folder or Path(name)).absolute()
        everything, workdir = Runs(folder), folder / "run"
        window = everything.undisturbed()
        print(f"{window:.1f} s from the first checkpoint to the end of {NUM_STEPS} steps", flush=True)
        while done < flags.kills:
            moment = window * rng.random()
            left = everything.killed(workdir, moment)
            if isinstance(left, float):
                window = left
                continue
            alike = everything.continues_alike(workdir)
            done, equal = done + 1, equal + alike
            print(f"{done}: {moment:5.2f} s, {left}: {'equal' if alike else 'NOT EQUAL'}", flush=True)
    print(f"{equal} of {flags.kills} kills continued to the same bits")
    sys.exit(equal < flags.kills)


if __name__ == "__main__":
    main()
