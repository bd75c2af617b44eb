"""A thread that does all the work on a set of devices, while the main thread works on other devices.

Two threads must never start programs on the same devices: with several devices each program might come first on one of
them, and both would wait for ever. So all that is sampled on such devices goes through their one lane.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

T = TypeVar("T")

_POLL_SECONDS = 0.1
"""How often a thread that waits for the lane reports: soon enough for someone who presses Ctrl-C."""


class Lane:
    """Does its works one after the other, in the order in which they were begun.

    `report` gets a line about the progress from the thread that waits for a work, and nothing while nobody waits, so
    that it does not write over the progress of others. An exception in it gives all works up.
    """

    def __init__(self, report: Callable[[str], None] | None = None) -> None:
        self.report, self.line = report, ""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="lane")
        self._works: list[Work] = []

    def note(self, line: str) -> None:
        """Takes the progress of the running work; called in the lane's thread."""
        self.line = line

    def begin(self, make: Callable[[], Generator[T]]) -> Work[T]:
        """Begins what `make` yields, after all earlier works; it goes on whether or not somebody waits for it."""
        work = Work(self, self._pool, make)
        self._works = [one for one in self._works if not one.ended] + [work]
        return work

    def give_up(self) -> None:
        """Ends all works, and waits until none is running."""
        works, self._works = self._works, []
        for work in works:
            work.stop()
        wait([work.future for work in works])

    def close(self) -> None:
        """Ends all works and the thread."""
        self.give_up()
        self._pool.shutdown()


class Work(Iterator[T], Generic[T]):
    """What a lane yields in one work. The iteration waits, and raises the error that has ended the work, if one has."""

    def __init__(self, lane: Lane, pool: ThreadPoolExecutor, make: Callable[[], Generator[T]]) -> None:
        self._lane, self._make = lane, make
        self._found: queue.SimpleQueue[tuple[T] | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self.future: Future[None] = pool.submit(self._run)

    @property
    def ended(self) -> bool:
        return self.future.done()

    def stop(self) -> None:
        """Ends the work after what it is doing now."""
        self._stopped.set()

    def _run(self) -> None:
        """In the lane's thread."""
        try:
            if self._stopped.is_set():
                return
            results = self._make()
            try:
                for one in results:
                    if self._stopped.is_set():
                        return
                    self._found.put((one,))
            finally:
                results.close()
        finally:
            self._found.put(None)

    def __next__(self) -> T:
        found = self._next()
        if found is None:
            self._found.put(None)  # for a further call
            self.future.result()
            raise StopIteration
        return found[0]

    def _next(self) -> tuple[T] | None:
        while True:
            try:
                return self._found.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                self._report()

    def _report(self) -> None:
        if self._lane.report is None:
            return
        try:
            self._lane.report(self._lane.line)
        except BaseException:
            self._lane.give_up()
            raise
