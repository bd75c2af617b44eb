"""Our engine without refilling, as the peer of the case with responses of different lengths."""

from __future__ import annotations

import functools

from benchmarks import rollout_ours, worker
from benchmarks.rollout_cases import CASES

if __name__ == "__main__":
    worker.serve(CASES, functools.partial(rollout_ours.prepare, refills=False))
