"""A sign of life for whoever reads a log: what a command is doing, where no terminal shows it.

Importing, loading and compiling take minutes for a large model, and a log that says nothing meanwhile looks like a
process that hangs.
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
"""Is given how far a phase is, in words."""


@dataclasses.dataclass(eq=False)
class _Phase:
    what: str
    start: float
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.what}, {time.monotonic() - self.start:.0f} s" + (f": {self.detail}" if self.detail else "")


class Heartbeat:
    """Writes what is being done whenever nothing was written for a while: `with Heartbeat(sys.stdout) as heartbeat`.

    Every line is written whole and flushed. The thread sleeps between two lines, and ends with the process. Nothing is
    written for the file None, nor to a terminal, where a console shows more.
    """

    first: ClassVar[float] = 0.5
    """Seconds before the first line: what ends sooner, such as a mistake on the command line, needs none."""

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
        """Beats from now on; nothing happens where it does already."""
        if self._file is not None and self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(self._file,), name="heartbeat", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Writes nothing more."""
        with self._changed:
            self._thread = None
            self._changed.notify_all()

    @contextlib.contextmanager
    def during(self, what: str) -> Iterator[Detail]:
        """`what` is done meanwhile, such as "loading the student"; the innermost phase is the one that is shown.

        Yields a function that is given how far it is.
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
        """How far the innermost phase is."""
        with self._changed:
            if self._phases:
                self._phases[-1].detail = text

    def watch(self, source: Callable[[], str]) -> None:
        """Adds what `source` says at that time to each line, unless it is empty."""
        self._sources.append(source)

    def heard(self) -> None:
        """Somebody else has written a line."""
        self._due = time.monotonic() + self.interval

    def _run(self, file: TextIO) -> None:
        while self._waits():
            words = self._words()
            try:
                file.write(words)
                file.flush()
            except (OSError, ValueError):  # a full disk, a closed pipe: the command itself will say so
                return

    def _waits(self) -> bool:
        """Until a line is due; False when there is to be none any more."""
        with self._changed:
            while self._thread is threading.current_thread():
                left = self._due - time.monotonic()
                if left <= 0:
                    self.heard()
                    return True
                self._changed.wait(left)
        return False

    def _words(self) -> str:
        """A line, or nothing where nothing is under way."""
        with self._changed:
            if not self._phases:
                return ""
            phase = str(self._phases[-1])
        return "; ".join(filter(None, (phase, *(source() for source in self._sources)))) + "\n"
