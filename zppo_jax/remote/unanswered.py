"""The error of a request without a usable reply."""

from __future__ import annotations

from typing import Literal

Cause = Literal["timeout", "late", "unavailable", "refused", "malformed", "too_long"]
"""What went wrong: no reply in time; none before the step's deadline; the endpoint could not be reached or failed; it
did not take the request; its reply was not what it should be; the prompt is longer than its model can read."""


class Unanswered(Exception):
    """A model gave no output; the message says why.

    `again`: another attempt may help. `down`: no request will fare better at this endpoint now, not only this one.
    `pause`: the endpoint asked to be left alone for so many seconds.
    """

    def __init__(
        self,
        reason: str,
        cause: Cause = "unavailable",
        *,
        again: bool = True,
        down: bool = False,
        pause: float = 0.0,
    ) -> None:
        super().__init__(reason)
        self.cause: Cause = cause
        self.again, self.down, self.pause = again, down, pause
