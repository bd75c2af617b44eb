"""zppo_jax's model against transformers' on the same weights and tokens: one JSON line per case.

    python -m benchmarks.model [CASE ...] [--cores=0] [--rounds=5] [--checkpoints=DIR]

README.md in this folder explains the method. Exit status 1 if a case falls below its floor.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks import compare
from benchmarks.cases import CASES, Case

SIDES = {"ours": "benchmarks.ours", "peer": "benchmarks.peer"}


def report(case: Case, checkpoint: Path, conditions: compare.Conditions) -> dict[str, Any]:
    facts, results = compare.measure(case, SIDES, checkpoint, conditions)
    return {"case": case.name, "batch": case.batch, "length": case.length} | results | facts


def main(arguments: list[str] | None = None) -> int:
    return compare.run_cases(__doc__, CASES, report, arguments)


if __name__ == "__main__":
    sys.exit(main())
