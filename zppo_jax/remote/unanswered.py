"""The error of a request without a usable reply."""

from __future__ import annotations

from zppo_jax.types import MissReason


class Unanswered(Exception):
    """A model gave no output; the message says why.

    `again`: another attempt may help. `down`: no request will fare better at this endpoint now, not only this one.
    `pause`: the endpoint asked to be left alone for so many seconds. `wants_key`: it wants another key.
    """

    def __init__(
        self,
        reason: str,
        cause: MissReason = "unavailable",
        *,
        again: bool = True,
        down: bool = False,
        pause: float = 0.0,
        wants_key: bool = False,
    ) -> None:
        super().__init__(reason)
        self.cause: MissReason = cause
        self.again, self.down, self.pause, self.wants_key = again, down, pause, wants_key
