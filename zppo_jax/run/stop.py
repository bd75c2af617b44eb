"""A safe way to stop a run: a signal is a request, which the loop checks between steps.

with StopRequest() as stop:
    while not stop.requested:
        ...
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, Self


class StopRequested(Exception):
    """The user wants the run to end."""


class StopRequest:
    """Turns the first SIGINT or SIGTERM into a flag that the loop checks between steps; a second one stops at once.

    Long work can be interrupted: inside `interruptible()`, a report that was wrapped by `interrupting` raises
    StopRequested.

    The handlers are installed inside the `with` block only. Blocks may end in another order than they began: a handler
    that was installed over this one's stays, and a signal that reaches this one after its block goes to the one below.
    Outside the main thread, where Python allows none, the flag is never set.
    """

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._interruptible = False
        self._previous: dict[int, Any] = {}
        self._active = False

    @property
    def requested(self) -> bool:
        """Whether the user wants the run to save and end."""
        return self._requested.is_set()

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside this block a stop request raises StopRequested at the next report."""
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False

    def interrupting(self, report: Callable[[str], None]) -> Callable[[str], None]:
        """Wraps `report` so that it raises StopRequested inside `interruptible()`."""

        def interrupting(line: str) -> None:
            if self._interruptible and self.requested:
                raise StopRequested
            report(line)

        return interrupting

    def __enter__(self) -> Self:
        self._active = True
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._active = False
        for number, handler in self._previous.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._active:
            return self._pass_on(number, frame)
        if self.requested:
            raise KeyboardInterrupt
        self._requested.set()
        # Not print: a signal may arrive while print itself is at work.
        os.write(2, b"\nstopping and saving; press again to stop at once\n")

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """Does what the handler before this one does."""
        previous = self._previous[number]
        if callable(previous):
            previous(number, frame)
        elif previous == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
