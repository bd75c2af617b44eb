"""A heartbeat in the log: what a command is doing, if no terminal shows it.

Importing, loading and compiling take minutes for a large model; without a line in the log the process seems to hang.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import ClassVar, Self, TextIO

Detail = Callable[[str], None]
"""Takes the progress of a phase, in words."""


@dataclasses.dataclass(eq=False)
class _Phase:
    what: str
    start: float
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.what}, {time.monotonic() - self.start:.0f} s" + (f": {self.detail}" if self.detail else "")


class Heartbeat:
    """Writes what is being done if nothing was written for a while: `with Heartbeat(sys.stdout) as heartbeat`.

    Every line is written whole and flushed. The thread sleeps between two lines, and ends with the process. Writes
    nothing if the file is None or a terminal, where a console shows more.
    """

    first: ClassVar[float] = 0.5
    """Seconds before the first line: a command that ends sooner, as after a mistake on the command line, needs none."""

    interval: ClassVar[float] = 30.0
    """Seconds of silence before each further one."""

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = None if file is None or file.isatty() else file
        self._due = time.monotonic() + self.first
        self._phases: list[_Phase] = []
        self._sources: list[Callable[[], str]] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.stop()

    def start(self) -> None:
        """Starts beating; does nothing if it already beats."""
        if self._file is not None and self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(self._file,), name="heartbeat", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stops beating."""
        with self._changed:
            self._thread = None
            self._changed.notify_all()

    @contextlib.contextmanager
    def during(self, what: str) -> Iterator[Detail]:
        """Names the phase of the block, such as "loading the student"; the innermost phase is shown.

        Yields a function that takes its progress.
        """
        phase = _Phase(what, time.monotonic())
        with self._changed:
            self._phases.append(phase)
        try:
            yield lambda text: setattr(phase, "detail", text)
        finally:
            with self._changed:
                self._phases.remove(phase)

    def detail(self, text: str) -> None:
        """Sets the progress of the innermost phase."""
        with self._changed:
            if self._phases:
                self._phases[-1].detail = text

    def watch(self, source: Callable[[], str]) -> None:
        """Adds the current text of `source` to each line, unless it is empty."""
        self._sources.append(source)

    def heard(self) -> None:
        """Restarts the wait, because another part has written a line."""
        self._due = time.monotonic() + self.interval

    def _run(self, file: TextIO) -> None:
        while self._waits():
            words = self._words()
            try:
                file.write(words)
                file.flush()
            except (OSError, ValueError):  # a full disk, a closed pipe: the command itself reports it
                return

    def _waits(self) -> bool:
        """Waits until a line is due; returns False if there will be no more."""
        with self._changed:
            while self._thread is threading.current_thread():
                left = self._due - time.monotonic()
                if left <= 0:
                    self.heard()
                    return True
                self._changed.wait(left)
        return False

    def _words(self) -> str:
        """The line to write; empty if no phase is running."""
        with self._changed:
            if not self._phases:
                return ""
            phase = str(self._phases[-1])
        return "; ".join(filter(None, (phase, *(source() for source in self._sources)))) + "\n"
