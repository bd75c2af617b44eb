"""Files of rows: a JSON object with a step on each line, strict JSON in UTF-8. Appended whole, read, cut back.

A killed process may leave a last line without its end; only such a line is ever left out. Any other damaged line is an
error that names it: nothing is dropped silently.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from zppo_jax.errors import WorkdirError
from zppo_jax.files import read_file, write_atomically


def read_rows(file: Path | str) -> list[dict[str, Any]]:
    """Reads the rows of a .jsonl file of this package; a half-written last line is left out, no file gives no rows.

    Raises WorkdirError, which names file and line, if another line is damaged.
    """
    return [row for row, _ in _parsed_lines(Path(file))]


def read_metrics(file: Path | str) -> list[dict[str, Any]]:
    """Reads the rows of a metrics.jsonl, like `read_rows`; all values are numbers or None."""
    rows = read_rows(file)
    for number, row in enumerate(rows, 1):
        for name, value in row.items():
            if value is not None and not (isinstance(value, int | float) and abs(value) <= sys.float_info.max):
                raise _damaged(Path(file), number, f"{name} is not a number")
    return rows


def _parsed_lines(file: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yields rows with their bytes. Leaves out only what a killed process can leave: a last line without its end."""
    for number, line in enumerate(read_file(file).split(b"\n")[:-1], 1):
        try:
            yield _row(line), line + b"\n"
        except (ValueError, RecursionError) as error:
            raise _damaged(file, number, str(error)) from error


def _row(line: bytes) -> dict[str, Any]:
    row = json.loads(line.decode(), parse_constant=_no_number)
    if not isinstance(row, dict) or type(row.get("step")) is not int or row["step"] < 0:
        raise ValueError("it is not a row with a step")
    return row


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _damaged(file: Path, number: int, reason: str) -> WorkdirError:
    return WorkdirError(
        f"{file}, line {number} is damaged ({reason}): put it right or delete it (sed -i {number}d), then the same "
        "command continues; the other lines are as they were"
    )


def append(file: Path, line: bytes) -> None:
    """Adds the whole line, or raises OSError and adds nothing."""
    size = file.stat().st_size if file.exists() else 0
    try:
        with file.open("ab") as opened:
            opened.write(line)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(file, size)
        raise OSError(error.errno, error.strerror, str(file)) from error  # a failed write does not name the file


def cut(file: Path, step: int) -> None:
    """Keeps the rows of at most `step`, byte for byte; raises WorkdirError, and cuts none, if one is damaged."""
    if file.exists():
        write_atomically(file, b"".join(line for row, line in _parsed_lines(file) if row["step"] <= step))


def json_line(row: Mapping[str, Any]) -> bytes:
    """The line of a row; raises ValueError for a value that JSON cannot express."""
    # A lone surrogate has no UTF-8; its backslash escape is valid JSON.
    return json.dumps(row, allow_nan=False, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def scalar(value: Any) -> float | int | bool | None:
    """A JSON number from a Python, NumPy or JAX scalar; None if it is None or not finite."""
    if value is None:
        return None
    number = np.asarray(value).item()
    return number if math.isfinite(number) else None
