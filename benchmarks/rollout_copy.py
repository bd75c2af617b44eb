"""The speed of copying memory, as a side of the memory-bound case: arrays larger than any cache."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks import worker
from benchmarks.rollout_cases import CASES, Case

BYTES = 2**30
"""Bytes of the array that is copied."""
REPEATS = 4
MOVED = 2 * BYTES * REPEATS
"""Bytes read and written in one run."""


def prepare(case: Case, checkpoint: str) -> tuple[worker.Run, worker.Run, dict[str, Any]]:
    del case, checkpoint
    source, target = np.ones(BYTES // 4, np.float32), np.zeros(BYTES // 4, np.float32)

    def run() -> None:
        for _ in range(REPEATS):
            np.copyto(target, source)

    return run, lambda: [], {"versions": {"numpy": np.__version__}}


if __name__ == "__main__":
    worker.serve(CASES, prepare)
