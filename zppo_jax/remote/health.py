"""The health of several endpoints with the same model: which of them the next request goes to.

Times are of the monotonic clock. Nothing here waits, or knows of tasks: asking.py calls it from its event loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from zppo_jax.remote.unanswered import Unanswered

MAX_FAILURES = 3
"""So many requests in a row that failed at an endpoint, each after its retries, and it counts as down."""
_LONGEST_REST = 300.0


@dataclasses.dataclass(eq=False)
class Health:
    """What is known of one endpoint.

    `down` says why nothing is sent there before `tried_at`; after that, and in the next step, it is doubted: one
    request at a time, with a single attempt, until one succeeds. `free_at`: it has asked to be left alone until then.
    """

    url: str
    rest: float
    busy: int = 0
    down: str = ""
    tried_at: float = 0.0
    free_at: float = 0.0
    doubted: bool = False
    probed: bool = False
    _failures: int = 0
    _rests: int = 0
    _has_answered: bool = False
    _answered_in_step: bool = False

    def begin(self, gave_up: bool) -> None:
        """Begins a step: it is asked again, whatever happened before. It is doubted if it was down, or if it answered
        nothing in a step that was given up."""
        self.doubted = self.doubted or bool(self.down) or (gave_up and not self._answered_in_step)
        self.down, self.free_at, self._failures, self._answered_in_step = "", 0.0, 0, False

    def look(self, now: float) -> None:
        """Doubts an endpoint that has rested."""
        if self.down and now >= self.tried_at:
            self.down, self.doubted, self._failures = "", True, 0

    def answered(self) -> None:
        """Takes note of a good reply."""
        self.down, self.doubted = "", False
        self._has_answered = self._answered_in_step = True
        self._failures = self._rests = 0

    def failed(self, failure: Unanswered, now: float) -> bool:
        """Counts a request that failed here; returns whether the endpoint is down because of it.

        A request that it does not take shows that it is there; it counts only while it has taken no other.
        """
        if failure.again or not self._has_answered:
            self._failures += failure.cause != "too_long"
        self.doubted = self.doubted and failure.again
        if failure.down or self._failures >= MAX_FAILURES or self.doubted:
            return self.fall(str(failure), now, failure.pause)
        return False

    def fall(self, reason: str, now: float, pause: float = 0.0) -> bool:
        """Sends nothing there for a while, longer each time; returns whether that is new."""
        if self.down:
            return False
        self.down, self.doubted = reason, False
        self.tried_at = now + max(pause, min(self.rest * 2**self._rests, max(_LONGEST_REST, self.rest)))
        self._rests += 1
        return True


def choose(endpoints: Sequence[Health], tried: Collection[Health], now: float) -> Health | None:
    """The endpoint for the next attempt of a request that was `tried` at some; None if it must wait for one of them.

    One that is doubted comes first, so that it comes back; then the least busy one that was not tried. Raises
    Unanswered if all are down.
    """
    for one in endpoints:
        one.look(now)
    free = [one for one in endpoints if not one.down and now >= one.free_at]
    doubted, trusted = [one for one in free if one.doubted and not one.probed], [one for one in free if not one.doubted]
    for group in (_untried(doubted, tried), _untried(trusted, tried), trusted, doubted):
        if group:
            return min(group, key=lambda one: one.busy)
    if all(one.down for one in endpoints):
        raise Unanswered("; ".join(dict.fromkeys(one.down for one in endpoints)), again=False)
    return None


def has_another(endpoints: Sequence[Health], tried: Collection[Health], now: float) -> bool:
    """Whether an endpoint that was not tried may take the request at once."""
    return any(not one.down and not one.probed and now >= one.free_at for one in _untried(endpoints, tried))


def _untried(endpoints: Sequence[Health], tried: Collection[Health]) -> list[Health]:
    return [one for one in endpoints if one not in tried]
