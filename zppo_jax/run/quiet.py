"""What fails in Orbax, once and in one line: by itself it logs tracebacks of what it also raises, from every thread."""

from __future__ import annotations

import contextlib
import logging as stdlib_logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from absl import logging


def silence_late_errors() -> None:
    """Stops orbax's threads, asyncio and the interpreter from printing an error of the disk again for every array.

    Such errors reach us as exceptions. Process-wide, and for good.
    """
    logging.set_verbosity(logging.FATAL)
    stdlib_logging.getLogger("asyncio").setLevel(stdlib_logging.CRITICAL)
    warnings.filterwarnings("ignore", r"coroutine .* was never awaited", RuntimeWarning)
    hook = sys.unraisablehook

    def report(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = report


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Orbax logs the traceback of an error that it raises as well; ours is the one line that a person reads."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def first_line(error: Exception) -> str:
    """Kind and first line of an error, the middle of a long one left out, and what tensorstore was asked for."""
    line = next(iter(str(error).splitlines()), "").partition(" [tensorstore_spec=")[0]
    return f"{type(error).__name__}: {line if len(line) <= 200 else f'{line[:80]} ... {line[-110:]}'}"
