"""The progress of a build: a bar on a terminal, lines in a log; done, of how many, how many a second, time left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TextIO, TypeVar

import rich.console
import rich.progress

from zppo_jax.command.heartbeat import Heartbeat

Advance = Callable[[int], None]
"""Takes the number of things that were finished."""

T = TypeVar("T")

_AT_ONCE = 1000
"""The number of values that `mapped` holds: those of a whole corpus would fill the memory."""
_WARM_UP = 1.0
"""Seconds before a rate is shown."""


class Progress:
    """Shows the stages of a build on `file`, one after the other."""

    def __init__(self, file: TextIO, heartbeat: Heartbeat):
        self._file = file
        self._heartbeat = heartbeat

    @contextlib.contextmanager
    def stage(self, what: str, things: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Shows a stage of `total` things, of which an earlier run finished `done`, while the block runs."""
        watch = _Watch(things, total, done)
        with contextlib.ExitStack() as stack:
            show = stack.enter_context(self._bar(what, watch) if self._file.isatty() else self._log(what))

            def advance(number: int) -> None:
                watch.done += number
                show(str(watch))

            show(str(watch))
            yield advance
        self.line(f"{what}: {watch.summary()}")

    def mapped(self, what: str, things: str, function: Callable[[int], T], size: int, num_threads: int) -> Iterator[T]:
        """Shows a stage that calls a function with 0, 1, ..., size - 1, in threads; yields its values in order."""
        with self.stage(what, things, size) as advance, ThreadPoolExecutor(num_threads) as threads:
            for first in range(0, size, _AT_ONCE):
                for value in threads.map(function, range(first, min(first + _AT_ONCE, size))):
                    advance(1)
                    yield value

    def line(self, text: str) -> None:
        """Prints a line that stays."""
        self._heartbeat.heard()
        print(text, file=self._file, flush=True)

    def _log(self, what: str) -> contextlib.AbstractContextManager[Callable[[str], None]]:
        return self._heartbeat.during(what)

    @contextlib.contextmanager
    def _bar(self, what: str, watch: _Watch) -> Iterator[Callable[[str], None]]:
        columns = (rich.progress.TextColumn("{task.description}"), rich.progress.BarColumn(), "{task.fields[words]}")
        console = rich.console.Console(file=self._file)
        with rich.progress.Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(what, total=watch.total, words="")
            yield lambda words: progress.update(task, completed=watch.done, words=words)


class _Watch:
    """Counts things and the time they take."""

    def __init__(self, things: str, total: int, done: int):
        self.things, self.total, self.done, self._before = things, total, done, done
        self._start = time.monotonic()

    def _rate(self) -> float:
        seconds = time.monotonic() - self._start
        return (self.done - self._before) / seconds if seconds > _WARM_UP else 0.0

    def __str__(self) -> str:
        words, rate = f"{self.done:,} of {self.total:,} {self.things}", self._rate()
        if rate:
            words += f", {_readable(rate)} {self.things}/s, {_duration((self.total - self.done) / rate)} left"
        return words

    def summary(self) -> str:
        """What was done, in words, at the end."""
        kept = f" ({self._before:,} of an earlier run)" if self._before else ""
        rate = f" ({_readable(self._rate())} {self.things}/s)" if self._rate() else ""
        return f"{self.done:,} {self.things}{kept} in {_duration(time.monotonic() - self._start)}{rate}"


def _readable(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
