"""Pairs the speed of two checkouts: python -m benchmarks.lockstep BASE_DIR HEAD_DIR [--steps=30] [--method=zppo]

Both run `configs/tiny.py`, and take turns: one is stopped (SIGSTOP) while the other makes a step. So both meet the same
machine. Prints the ratio HEAD / BASE of processor and wall time, of the sums and as the median of pairs, without the
first steps, which compile; then the medians of the phases.

`--base` and `--head` give one of them further keys (`--head=teacher.path=http://...`), so that two configurations of
one checkout can be compared; `--core` binds both to one core.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WARM_UP = 4
PHASES = ("time/rollout", "time/teacher", "time/update", "time/step")


class Side:
    """A run of one checkout, stopped except in its turn."""

    def __init__(
        self, tree: Path, folder: Path, steps: int, method: str, settings: list[str], core: int | None
    ) -> None:
        changes = [f"num_steps={steps}", "eval.every=1000", "checkpoint.every=1000", *settings]
        words = [f"--config=configs/tiny.py:{method}", f"--workdir={folder}"]
        words += [f"--config.{change}" for change in changes]
        self.metrics = folder / "metrics.jsonl"
        self.cpu: list[float] = []
        self.wall: list[float] = []
        with folder.with_suffix(".log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "zppo_jax.main", *words],
                cwd=tree, env=os.environ | {"PYTHONPATH": str(tree)}, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        if core is not None:
            os.sched_setaffinity(self.process.pid, {core})
        self.process.send_signal(signal.SIGSTOP)

    def rows(self) -> list[str]:
        return self.metrics.read_text().splitlines() if self.metrics.exists() else []

    def _used(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def turn(self) -> bool:
        """Lets the run write one more row; returns False if it has ended."""
        before, start, used = len(self.rows()), time.monotonic(), self._used()
        self.process.send_signal(signal.SIGCONT)
        while len(self.rows()) == before:
            if self.process.poll() is not None:
                return False
            time.sleep(0.002)
        self.process.send_signal(signal.SIGSTOP)
        self.cpu.append(self._used() - used)
        self.wall.append(time.monotonic() - start)
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs=2, type=Path)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--method", default="zppo")
    parser.add_argument("--base", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--head", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--core", type=int)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        names = (Path(folder) / "base", Path(folder) / "head")
        pairs = zip(chosen.trees, names, (chosen.base, chosen.head), strict=True)
        sides = [
            Side(tree.absolute(), name, chosen.steps, chosen.method, settings, chosen.core)
            for tree, name, settings in pairs
        ]
        try:
            while all(side.turn() for side in sides):
                print(f"row {len(sides[0].cpu)}: {sides[0].cpu[-1]:.2f} {sides[1].cpu[-1]:.2f} CPU s", flush=True)
        finally:
            for side in sides:
                side.process.kill()
        report(*sides)


def report(base: Side, head: Side) -> None:
    count = min(len(base.cpu), len(head.cpu))
    if count <= WARM_UP:
        sys.exit(f"only {count} rows: look at the logs, or give more --steps")
    for name in ("cpu", "wall"):
        one, other = (getattr(side, name)[WARM_UP:count] for side in (base, head))
        median = statistics.median(b / a for a, b in zip(one, other, strict=True))
        print(f"{name}: sums {sum(other) / sum(one):.4f}, median of pairs {median:.4f}")
    found = [[json.loads(row) for row in side.rows()[WARM_UP:count]] for side in (base, head)]
    for phase in PHASES:
        one, other = (statistics.median(row[phase] for row in rows) for rows in found)
        print(f"{phase}: {one:.3f} s, {other:.3f} s")


if __name__ == "__main__":
    main()
