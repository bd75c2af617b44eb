"""zppo_jax's model against transformers' on the same weights and tokens: one JSON line a case.

    python -m benchmarks.model [CASE ...] [--cores=0] [--rounds=5] [--checkpoints=DIR]

README.md beside this file explains the method. The last case, training-0.8B-bf16-gpu, has no peer and needs a GPU
(benchmarks.utilisation). Exit status 1 if a case falls below its floor.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES, Case

SIDES = ("ours", "peer")
GPU_CASE = "training-0.8B-bf16-gpu"
TOLERANCE = 1e-3
"""Relative difference allowed between the two sides' checks: they must compute the same numbers."""


class Side:
    """A process that computes one case when it is told to."""

    def __init__(self, name: str, case: Case, checkpoint: Path, cores: str) -> None:
        command = [sys.executable, "-m", f"benchmarks.{name}", case.name, str(checkpoint), cores]
        self.name = name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.start = self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the side {self.name!r} ended (status {self.process.wait()}): see its error above")
        return json.loads(line)

    def run(self) -> dict[str, float]:
        assert self.process.stdin is not None
        print("run", file=self.process.stdin, flush=True)
        return self._read()


@contextlib.contextmanager
def _both(case: Case, checkpoint: Path, cores: str) -> Iterator[list[Side]]:
    sides: list[Side] = []
    try:
        for name in SIDES:
            sides.append(Side(name, case, checkpoint, cores))
        yield sides
    finally:
        for side in sides:
            side.process.kill()
            side.process.wait()


def require_agreement(case: Case, checks: list[list[float]]) -> None:
    """Raises ValueError when the two sides did not compute the same."""
    if not all(math.isclose(*pair, rel_tol=TOLERANCE, abs_tol=TOLERANCE) for pair in zip(*checks, strict=True)):
        raise ValueError(f"{case.name}: ours computed {checks[0]} and the peer {checks[1]}; speeds mean nothing")


def _summary(case: Case, side: Side, rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over the rounds, and the CPU seconds of each."""
    middle = {name: statistics.median(one[name] for one in rounds) for name in ("cpu", "kernel", "wall")}
    return {
        "tokens_per_cpu_second": round(case.tokens / middle["cpu"], 1),
        "tokens_per_wall_second": round(case.tokens / middle["wall"], 1),
        "cpu_seconds": [round(one["cpu"], 3) for one in rounds],
        "kernel_seconds": round(middle["kernel"], 3),
        "first_run_cpu_seconds": round(side.start["first_run"]["cpu"], 1),
        "peak_gib": round(max(one["peak_gib"] for one in rounds), 2),
        "check": side.start["check"],
    }


def measure(case: Case, checkpoint: Path, cores: str, num_rounds: int) -> dict[str, Any]:
    """Both sides in turns; the first run of each (compilation, caches) does not count."""
    with _both(case, checkpoint, cores) as sides:
        require_agreement(case, [side.start["check"] for side in sides])
        rounds = [[side.run() for side in sides] for _ in range(num_rounds)]
        results = {side.name: _summary(case, side, [one[index] for one in rounds]) for index, side in enumerate(sides)}
        versions = {name: version for side in sides for name, version in side.start["versions"].items()}
    ratio = results["ours"]["tokens_per_cpu_second"] / results["peer"]["tokens_per_cpu_second"]
    return {
        "case": case.name,
        "batch": case.batch,
        "length": case.length,
        "ratio": round(ratio, 2),
        "floor": case.floor,
        "goal": case.goal,
        **results,
        "versions": {"python": platform.python_version(), **versions},
        "cores": len(cores.split(",")),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _output("git", "rev-parse", "--short", "HEAD"),
        "machine": _machine(),
    }


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _machine() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def main(arguments: list[str] | None = None) -> int:
    known = (*CASES, GPU_CASE)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(known)}; all, unless given")
    parser.add_argument("--cores", default="0", help="cores of both sides, such as 0 or 0,1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--checkpoints", type=Path, help="where to keep the random checkpoints (1.8 GB) for next time")
    options = parser.parse_args(arguments)
    if unknown := set(options.cases) - set(known):
        parser.error(f"no such case: {', '.join(sorted(unknown))}; give some of {', '.join(known)}")
    reached = True
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.cases or known:
            if name == GPU_CASE:
                subprocess.run([sys.executable, "-m", "benchmarks.utilisation"], check=True)
                continue
            checkpoint = (options.checkpoints or Path(temporary)) / CASES[name].model
            _write_checkpoint(CASES[name].model, checkpoint)
            result = measure(CASES[name], checkpoint, options.cores, options.rounds)
            print(json.dumps(result), flush=True)
            reached &= result["ratio"] >= result["floor"]
    return 0 if reached else 1


def _write_checkpoint(model: str, directory: Path) -> None:
    """In a process of its own: this one is to hold no memory and no threads."""
    subprocess.run([sys.executable, "-m", "benchmarks.models", model, str(directory)], check=True)


if __name__ == "__main__":
    sys.exit(main())
