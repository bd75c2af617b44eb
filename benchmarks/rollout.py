"""Sampling with zppo_jax's engine against transformers' `generate` on the same weights: one JSON line per case.

    python -m benchmarks.rollout [CASE ...] [--cores=0] [--rounds=5] [--checkpoints=DIR]

README.md in this folder explains the method. In the case of different lengths the peer is our engine without refilling.
In the memory-bound one a third side copies memory. Exit status 1 if a case falls below its floor.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks import compare, rollout_copy
from benchmarks.rollout_cases import CASES, Case


def sides(case: Case) -> dict[str, str]:
    """The main programs of a case's sides; the first two are compared."""
    peer = "benchmarks.rollout_batches" if case.shortest is not None else "benchmarks.rollout_peer"
    copy = {"copy": "benchmarks.rollout_copy"} if case.roofline_goal is not None else {}
    return {"ours": "benchmarks.rollout_ours", "peer": peer} | copy


def roofline(case: Case, results: dict[str, dict[str, Any]], weight_bytes: int) -> dict[str, Any]:
    """The roofline from the copy's bandwidth, if a step only reads all weights once, and our share of it.

    Bandwidth counts bytes read and bytes written. Only decoding steps count as steps, so the share includes the cost of
    the prefill.
    """
    bandwidth = rollout_copy.MOVED / statistics.median(results["copy"]["cpu_seconds"])
    tokens_per_second = case.slots * bandwidth / weight_bytes
    return {
        "copy_gb_per_second": round(bandwidth / 1e9, 2),
        "weight_gb_per_step": round(weight_bytes / 1e9, 3),
        "roofline_tokens_per_second": round(tokens_per_second, 2),
        "roofline_share": round(results["ours"]["tokens_per_cpu_second"] / tokens_per_second, 3),
        "roofline_goal": case.roofline_goal,
    }


def agreement(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The numbers of agreed values, in place of the long lists: greedy tokens, and their log-probabilities."""
    ours, peer = (results[name].pop("check") for name in ("ours", "peer"))
    apart = [abs(one - other) for one, other in zip(ours, peer, strict=True) if isinstance(one, float)]
    return {"equal_greedy_tokens": len(apart), "logprob_difference": round(max(apart), 6)}


def report(case: Case, checkpoint: Path, conditions: compare.Conditions) -> dict[str, Any]:
    facts, results = compare.measure(case, sides(case), checkpoint, conditions)
    facts = agreement(results) | facts
    shape = {"questions": case.questions, "rollouts": case.rollouts, "prompt": case.prompt, "new": case.new}
    if case.roofline_goal is not None:
        from benchmarks import models

        facts = roofline(case, results, 4 * models.num_text_parameters(case.model)) | facts
        del results["copy"]
    return {"case": case.name} | shape | {"tokens": case.tokens} | results | facts


def main(arguments: list[str] | None = None) -> int:
    return compare.run_cases(__doc__, CASES, report, arguments)


if __name__ == "__main__":
    sys.exit(main())
