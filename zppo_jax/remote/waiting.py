"""Waiting for many requests of a step at once, with a limit on how long all waiting of the step may take together."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

_Key = TypeVar("_Key")


class Asker(Protocol):
    """Answers requests that were submitted to it: over a network (`Requests`), or in this process."""

    def settle(self, futures: Collection[Future[Any]]) -> None:
        """Waits a moment for these, or answers them; the caller's thread is the one that samples."""
        ...

    def give_up(self, reason: str) -> None:
        """Ends what is not done, and accepts no more in this step."""
        ...


class Waiting:
    """The waiting of a step. `setting` names the key with the limit; what runs while nobody waits is not counted."""

    def __init__(self, deadline_seconds: float, setting: str) -> None:
        self._deadline, self._setting = deadline_seconds, setting
        self.begin()

    def begin(self) -> None:
        """Begins a step: the whole time is there again."""
        self.seconds, self._is_late = 0.0, False

    def batches(
        self,
        asker: Asker,
        waiting: Mapping[_Key, Future[Any]],
        report: Callable[[str], None] | None = None,
        line: str = "{done} of {total}",
    ) -> Iterator[dict[_Key, Future[Any]]]:
        """Yields futures as they are done; after the deadline the asker gives up, and the rest is done at once.

        `report` gets a line about the progress now and then; an exception in it ends the waiting.
        """
        total, left, start = len(waiting), dict(waiting), time.monotonic()
        before = self.seconds
        try:
            while left:
                asker.settle(left.values())
                done = {key: future for key, future in left.items() if future.done()}
                left = {key: future for key, future in left.items() if key not in done}
                yield done
                self.seconds = before + time.monotonic() - start
                if left and not self._is_late and self.seconds > self._deadline:
                    self._is_late = True
                    asker.give_up(f"{self._setting} = {self._deadline:g} are over")
                if report is not None:
                    report(line.format(done=total - len(left), total=total))
        finally:
            self.seconds = before + time.monotonic() - start
