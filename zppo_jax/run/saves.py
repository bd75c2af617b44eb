"""Checkpoints during a run: if one cannot be written, training goes on, and the next one is tried when it is due."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from zppo_jax.errors import WorkdirError
from zppo_jax.run.checkpoint import Checkpoints


class Saves:
    """Saves through `checkpoints`; failures are reported and counted in `failed`."""

    def __init__(self, checkpoints: Checkpoints, report: Callable[[str], None]) -> None:
        self._checkpoints, self._report = checkpoints, report
        self.failed = 0

    def save(self, step: int, state: Any, host: dict[str, Any], accuracy: float | None) -> None:
        """Waits for the previous checkpoint, and begins to write this one."""
        self.finish()
        self._try(functools.partial(self._checkpoints.save, step, state, host, accuracy))

    def check(self) -> None:
        """Reports a failure of the checkpoint that is being written; does not wait."""
        self._try(self._checkpoints.check)

    def finish(self) -> None:
        """Waits until everything is written."""
        self._try(self._checkpoints.finish)

    def last(self, step: int, state: Any, host: dict[str, Any], accuracy: float | None) -> None:
        """Saves the end of a run unless it is already saved, and waits for it. Raises WorkdirError if that fails."""
        self.finish()
        self._checkpoints.save(step, state, host, accuracy)
        self._checkpoints.finish()

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except WorkdirError as error:
            self.failed += 1
            self._report(f"!! {error}. Training goes on; the next checkpoint is tried in its turn")
