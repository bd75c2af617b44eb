"""Seconds of each phase of a step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

Phase = Callable[[str], AbstractContextManager[None]]
"""Begins a phase of a step, for the clock, the trace and the console."""


class PhaseTimers:
    """Seconds spent in each phase of a step: `with timers("rollout"): ...`, then `flush()` once per step.

    A step lasts from one flush to the next, so work after the row of a step (writing it, the checkpoint) counts for the
    next step. Phases do not overlap. `annotate` is called with the name of each phase, for a trace.
    """

    def __init__(self, annotate: Callable[[str], AbstractContextManager[Any]] = contextlib.nullcontext) -> None:
        self._annotate = annotate
        self._seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            with self._annotate(phase):
                yield
        finally:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - start

    def flush(self) -> dict[str, float]:
        """Returns the seconds since the last flush as metrics, {"time/rollout": 1.2, ...}, with those of the whole step
        and those outside any phase; restarts the clocks."""
        seconds, self._seconds = self._seconds, {}
        start, self._start = self._start, time.perf_counter()
        whole = self._start - start
        rest = {"unaccounted": whole - sum(seconds.values()), "step": whole}
        return {f"time/{phase}": value for phase, value in (seconds | rest).items()}
