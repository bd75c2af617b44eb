"""Rows of files with one JSON object a line (.jsonl), read by the position of the line."""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from zppo_jax.data.tables.files import fingerprint, home_of, open_file
from zppo_jax.data.tables.table import Row, RowError

_READ_BYTES = 1 << 24
_HALF_PAIR: dict[type, Any] = {
    str: r"\\u[dD][89a-fA-F]|[\ud800-\udfff]",
    bytes: rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]",
}
"""Where half a surrogate pair may be: an escape, or what stands for one in UTF-8; each may belong to a whole pair."""


class JsonlTable:
    """The rows of .jsonl files, one after the other; blank lines are not rows. Opening reads the files once, to find
    where lines begin."""

    def __init__(self, files: Sequence[str]):
        self.files = tuple(files)
        spans = [_line_spans(path) for path in self.files]
        self._spans_R2 = np.concatenate([np.zeros((0, 2), np.int64), *spans])
        self._starts = np.cumsum([0, *map(len, spans)]).tolist()

    def __repr__(self) -> str:
        return f"JsonlTable({len(self.files)} files, {len(self)} rows)"

    def __len__(self) -> int:
        return len(self._spans_R2)

    def row(self, number: int) -> Row:
        with open_file(self.files[self._file_of(number)]) as opened:
            return self._read(opened, number)

    def _read(self, opened: BinaryIO, number: int) -> Row:
        start, end = self._spans_R2[number].tolist()
        try:
            opened.seek(start)
            found = parse_json(opened.read(end - start))
        except (OSError, ValueError, RecursionError) as error:
            raise RowError(f"the line is not JSON ({' '.join(str(error).split())[:200]})") from error
        if not isinstance(found, dict):
            raise RowError("the line is JSON, but not an object: write {...} on each line")
        return found

    def columns(self, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        for file, path in enumerate(self.files):
            with open_file(path) as opened:
                for number in range(self._starts[file], self._starts[file + 1]):
                    try:
                        row = self._read(opened, number)
                    except RowError:
                        row = {}
                    yield tuple(row.get(name) for name in names)

    def place(self, number: int) -> str:
        file = self._file_of(number)
        return f"{self.files[file]}, row {number - self._starts[file]}"

    def home(self, number: int) -> str | None:
        return home_of(self.files[self._file_of(number)])

    def fingerprint(self) -> str:
        return fingerprint(self.files)

    def _file_of(self, number: int) -> int:
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} does not exist: there are {len(self)}")
        return bisect.bisect_right(self._starts, number) - 1


def parse_json(content: str | bytes) -> Any:
    r"""The value that JSON spells. Half surrogate pairs, which JSON can spell ("\ud800") and no file or terminal can
    hold, become "?". Raises ValueError or RecursionError."""
    found = json.loads(content)
    if re.search(_HALF_PAIR[type(content)], content) is None:
        return found
    return json.loads(json.dumps(found, ensure_ascii=False).encode("utf-8", "replace"))


def _line_spans(path: str) -> np.ndarray:
    """The first byte of each line that is not blank, and the byte after its last, int64 [R, 2]."""
    ends: list[np.ndarray] = []
    size = 0
    with open_file(path) as file:
        while piece := file.read(_READ_BYTES):
            ends.append(np.flatnonzero(np.frombuffer(piece, np.uint8) == 0x0A) + size)
            size += len(piece)
    ends_R = np.concatenate([*ends, [size]]) if ends else np.zeros(0, np.int64)
    starts_R = np.concatenate([[0], ends_R[:-1] + 1]) if len(ends_R) else ends_R
    spans_R2 = np.stack([starts_R, ends_R], axis=1).astype(np.int64)
    with open_file(path) as file:  # a line of only white space has less than a JSON object, {}, anyway
        return np.asarray([span for span in spans_R2.tolist() if _has_text(file, *span)], np.int64).reshape(-1, 2)


def _has_text(file: BinaryIO, start: int, end: int) -> bool:
    if end - start > 64:
        return True
    file.seek(start)
    return bool(file.read(end - start).strip())
