"""Runs cases in turns: several sides, each a separate process (worker.py), must agree before their speed counts.

Every script of this folder that compares two sides uses it: benchmarks.model, benchmarks.rollout, benchmarks.update,
benchmarks.step.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

TOLERANCE = 1e-3
"""The allowed relative difference between two sides' real numbers; whole numbers must be equal."""


class AnyCase(Protocol):
    """The interface of a case: `tokens` are those of one run; floor and goal are ratios of tokens per CPU second of the
    first side to those of the second."""

    @property
    def name(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def tokens(self) -> int: ...
    @property
    def floor(self) -> float: ...
    @property
    def goal(self) -> float: ...


SomeCase = TypeVar("SomeCase", bound=AnyCase)


@dataclasses.dataclass(frozen=True)
class Conditions:
    """The cores of all sides, such as "0" or "0,1"; the number of turns that count; and, by module, the Python of main
    programs that do not run in this environment."""

    cores: str
    num_rounds: int
    pythons: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Side:
    """A process that computes one case on request. `module` is its main program."""

    def __init__(self, name: str, module: str, case: AnyCase, checkpoint: Path, conditions: Conditions) -> None:
        python = conditions.pythons.get(module, sys.executable)
        command = [python, "-m", module, case.name, str(checkpoint), conditions.cores]
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
def _started(
    case: AnyCase, modules: Mapping[str, str], checkpoint: Path, conditions: Conditions
) -> Iterator[list[Side]]:
    sides: list[Side] = []
    try:
        for name, module in modules.items():
            sides.append(Side(name, module, case, checkpoint, conditions))
        yield sides
    finally:
        for side in sides:
            side.process.kill()
            side.process.wait()


def require_agreement(case: AnyCase, checks: Sequence[Sequence[float]]) -> None:
    """Raises ValueError if two sides did not compute the same."""
    ours, peer = checks
    if len(ours) != len(peer) or not all(_agree(*pair) for pair in zip(ours, peer, strict=True)):
        raise ValueError(f"{case.name}: ours computed {ours} and the peer {peer}; speeds mean nothing")


def _agree(one: float, other: float) -> bool:
    if isinstance(one, int) and isinstance(other, int):
        return one == other
    return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def _summary(case: AnyCase, side: Side, rounds: Sequence[dict[str, float]]) -> dict[str, Any]:
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
    } | side.start.get("extra", {})


def measure(
    case: AnyCase, modules: Mapping[str, str], checkpoint: Path, conditions: Conditions
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Measures all sides in turns and compares the first two; the first run of each (compilation, caches) does not
    count. Returns (ratio, floor, goal and circumstances, {side: its medians})."""
    with _started(case, modules, checkpoint, conditions) as sides:
        require_agreement(case, [side.start["check"] for side in sides[:2]])
        rounds = [[side.run() for side in sides] for _ in range(conditions.num_rounds)]
        results = {side.name: _summary(case, side, [one[index] for one in rounds]) for index, side in enumerate(sides)}
        versions = {name: version for side in sides for name, version in side.start["versions"].items()}
    first, second, *_ = (result["tokens_per_cpu_second"] for result in results.values())
    facts = {"ratio": round(first / second, 2), "floor": case.floor, "goal": case.goal}
    return facts | circumstances(versions, conditions.cores), results


def circumstances(versions: Mapping[str, str], cores: str) -> dict[str, Any]:
    """The circumstances of a figure besides the code that it names."""
    return {
        "versions": {"python": platform.python_version(), **versions},
        "cores": len(cores.split(",")),
        "load": round(os.getloadavg()[0], 2),
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


def run_cases(
    description: str | None,
    cases: Mapping[str, SomeCase],
    report: Callable[[SomeCase, Path, Conditions], dict[str, Any]],
    arguments: list[str] | None = None,
    peers: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Runs the command line: the chosen cases, one JSON line each. Returns 1 if one is below its floor.

    `report` measures a case, given its checkpoint. `peers`: names of peers with separate environments, and their
    modules; `--NAME-python` gives the Python.
    """
    known = tuple(cases)
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(known)}; all, unless given")
    parser.add_argument("--cores", default="0", help="cores of all sides, such as 0 or 0,1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--checkpoints", type=Path, help="where to keep the random checkpoints for next time")
    for peer in peers:
        parser.add_argument(f"--{peer}-python", default=sys.executable, help=f"the Python that has {peer}")
    options = parser.parse_args(arguments)
    if unknown := set(options.cases) - set(known):
        parser.error(f"no such case: {', '.join(sorted(unknown))}; give some of {', '.join(known)}")
    pythons = {module: getattr(options, f"{peer}_python") for peer, module in peers.items()}
    conditions, reached = Conditions(options.cores, options.rounds, pythons), True
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.cases or known:
            checkpoint = (options.checkpoints or Path(temporary)) / cases[name].model
            _write_checkpoint(cases[name].model, checkpoint)
            result = report(cases[name], checkpoint, conditions)
            print(json.dumps(result), flush=True)
            reached &= result["ratio"] >= result["floor"]
    return 0 if reached else 1


def _write_checkpoint(model: str, directory: Path) -> None:
    """Writes a checkpoint in a separate process, so that this one holds no memory and no threads."""
    subprocess.run([sys.executable, "-m", "benchmarks.models", model, str(directory)], check=True)
