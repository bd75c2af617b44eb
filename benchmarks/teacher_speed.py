"""The price of a teacher behind a network: python -m benchmarks.teacher_speed serve|slow [--steps=24]

`serve`: `configs/tiny.py` with the teacher behind `python -m zppo_jax.serve`, which has core 1 to itself, against the
same weights in this process, both on core 0. `slow`: 128 questions a step and a scripted teacher that needs --seconds=2
for each, against one that needs none. Prints what `benchmarks.lockstep` prints; time/teacher is what a step waits.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import runs
from tests.remote.processes import OurServer, Scripted
from zppo_jax.files import SHIPPED

SERVER_FLAGS = ["--num_slots=64", "--max_pixels=4096", "--max_prompt_tokens=512", "--max_new_tokens=16"]


def lockstep(steps: int, base: list[str], head: list[str], *more: str) -> None:
    sides = [f"--{side}={key}" for side, keys in (("base", base), ("head", head)) for key in keys]
    trees = [str(runs.ROOT)] * 2
    command = [sys.executable, "-m", "benchmarks.lockstep", *trees, f"--steps={steps}", *sides, *more]
    subprocess.run(command, cwd=runs.ROOT, check=True)


def behind_serve(steps: int) -> None:
    with OurServer(SHIPPED / "teacher", SERVER_FLAGS) as server:
        assert server.process is not None
        os.sched_setaffinity(server.process.pid, {1})
        lockstep(steps, [], [f"teacher.path={server.url}", "teacher.model=teacher"], "--core=0")


def slow(steps: int, seconds: float) -> None:
    names = ("fine:0", f"fine:{seconds:g}")
    with tempfile.TemporaryDirectory() as folder:
        server = Scripted("tests.teacher.scripted", Path(folder) / "log")
        server.name_models(*names)
        with server:
            both = [f"teacher.path={server.url}", "rollout.questions_per_step=128", "teacher.concurrency=64"]
            base, head = ([*both, f"teacher.model={name}"] for name in names)
            lockstep(steps, base, head)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=("serve", "slow"))
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=2.0)
    chosen = parser.parse_args()
    behind_serve(chosen.steps) if chosen.case == "serve" else slow(chosen.steps, chosen.seconds)


if __name__ == "__main__":
    main()
