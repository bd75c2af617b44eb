"""Runs a trainer's own loop one step at a time, so that a peer runs as its users run it and still takes turns."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Turns:
    """`loop` runs in a thread and calls `begin` at the beginning of a step; `step` lets it go on until the next
    beginning.

    `step` raises the exceptions of the loop.
    """

    def __init__(self, loop: Callable[[], object]) -> None:
        self._loop = loop
        self._may_go, self._has_come = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None

    def start(self) -> None:
        """Runs the loop up to its first step."""
        threading.Thread(target=self._run, daemon=True).start()
        self._wait()

    def begin(self) -> None:
        self._has_come.release()
        self._may_go.acquire()

    def step(self) -> None:
        self._may_go.release()
        self._wait()

    def _run(self) -> None:
        try:
            self._loop()
            self._error = RuntimeError("the loop has ended")
        except BaseException as error:
            self._error = error
        self._has_come.release()

    def _wait(self) -> None:
        self._has_come.acquire()
        if self._error is not None:
            raise self._error
