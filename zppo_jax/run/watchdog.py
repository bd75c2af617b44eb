"""The watchdog of updates: those that are not finite are counted, and too many of them in a row end the run."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from zppo_jax.errors import RunError


class NotFiniteError(RunError):
    """Too many updates in a row had to be skipped."""


class SkippedUpdates:
    """Counts the updates that were skipped in a row, across steps."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_a_row = 0
        self._longest = 0

    def count(self, num_updates: int, skipped: Collection[int]) -> None:
        """Counts the updates of a step, in order; `skipped` are the numbers of the skipped ones."""
        for number in range(num_updates):
            self._in_a_row = self._in_a_row + 1 if number in skipped else 0
            self._longest = max(self._longest, self._in_a_row)

    @property
    def alarmed(self) -> bool:
        """Whether more than the limit were skipped in a row."""
        return self._longest > self._limit

    def check(self, step: int, where: Path, saved_step: int | None) -> None:
        """Raises NotFiniteError if alarmed; `saved_step` is the newest checkpoint's."""
        if self.alarmed:
            kept = f"step {step} is saved without them" if saved_step == step else f"step {step} could not be saved"
            raise NotFiniteError(
                f"{self._longest} updates in a row, up to step {step}, had a loss or gradient that is not finite, more "
                f"than watchdog.max_skipped = {self._limit}; what they were to learn from is in {where}, and {kept}: "
                "look for the sample, or start again with a lower optimizer.learning_rate"
            )
