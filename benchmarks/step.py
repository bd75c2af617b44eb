"""A whole step of GRPO (rollouts, rewards, update) with zppo_jax against TRL and tunix: one JSON line per case.

    python -m benchmarks.step [CASE ...] [--trl-python=PYTHON] [--tunix-python=PYTHON] [--cores=0] [--rounds=5]
                              [--checkpoints=DIR]

README.md in this folder explains the method. tunix has no Qwen3.5: its model is a dense Qwen3 of about that size, and
the ratio is of tokens times parameters per CPU second. Exit status 1 if a case falls below its floor.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks import compare
from benchmarks.update_cases import STEPS, Case

PEERS = {"trl": "benchmarks.update_trl", "tunix": "benchmarks.update_tunix"}


def weighted(results: dict[str, dict[str, Any]]) -> float:
    """The ratio of tokens times parameters, if the models are not the same."""
    rates = (side["tokens_per_cpu_second"] * side["parameters"] for side in results.values())
    ours, peer = rates
    return round(ours / peer, 2)


def report(case: Case, checkpoint: Path, conditions: compare.Conditions) -> dict[str, Any]:
    sides = {"ours": "benchmarks.update_ours", "peer": PEERS[case.peer]}
    facts, results = compare.measure(case, sides, checkpoint, conditions)
    if case.peer == "tunix":
        facts["ratio"] = weighted(results)
    shape = {"peer_is": case.peer, "prompts": case.prompts, "rollouts": case.rollouts, "new": case.new}
    return {"case": case.name} | shape | results | facts


def main(arguments: list[str] | None = None) -> int:
    return compare.run_cases(__doc__, STEPS, report, arguments, PEERS)


if __name__ == "__main__":
    sys.exit(main())
