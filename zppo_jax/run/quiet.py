"""Reports errors of Orbax once, in one line: by itself it also logs the traceback of each error, from every thread."""

from __future__ import annotations

import contextlib
import logging as stdlib_logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from absl import logging


def silence_late_errors() -> None:
    """Stops orbax's threads, asyncio and the interpreter from printing a disk error again for every array.

    Such errors reach us as exceptions. Process-wide, and permanent.
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
    """Silences Orbax in the block: it logs tracebacks of errors that it also raises; we report one line."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def first_line(error: Exception) -> str:
    """The kind and the first line of an error, without the middle of a long one and without tensorstore's request."""
    line = next(iter(str(error).splitlines()), "").partition(" [tensorstore_spec=")[0]
    return f"{type(error).__name__}: {line if len(line) <= 200 else f'{line[:80]} ... {line[-110:]}'}"
