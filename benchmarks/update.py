"""An update with zppo_jax's learner against TRL's, on the same weights and recorded rollouts: one JSON line per case.

    python -m benchmarks.update [CASE ...] [--trl-python=PYTHON] [--cores=0] [--rounds=5] [--checkpoints=DIR]

README.md in this folder explains the method. In the cases that end in -devices our learner on eight fake devices is
compared with itself on one. Exit status 1 if a case falls below its floor.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks import compare
from benchmarks.update_cases import UPDATES, Case

PEERS = {"trl": "benchmarks.update_trl"}


def sides(case: Case) -> dict[str, str]:
    """The main programs of a case's sides; the first two are compared."""
    if case.peer == "one_device":
        return {"ours": "benchmarks.update_devices", "peer": "benchmarks.update_ours"}
    return {"ours": "benchmarks.update_ours", "peer": PEERS[case.peer]}


def report(case: Case, checkpoint: Path, conditions: compare.Conditions) -> dict[str, Any]:
    facts, results = compare.measure(case, sides(case), checkpoint, conditions)
    shape = {"peer_is": case.peer, "prompts": case.prompts, "rollouts": case.rollouts, "new": case.new}
    return {"case": case.name} | shape | results | facts


def main(arguments: list[str] | None = None) -> int:
    return compare.run_cases(__doc__, UPDATES, report, arguments, PEERS)


if __name__ == "__main__":
    sys.exit(main())
