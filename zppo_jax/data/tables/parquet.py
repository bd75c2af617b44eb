"""Rows of parquet files. A row group is the smallest piece that can be read, so recently read ones are kept."""

from __future__ import annotations

import bisect
import collections
import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zppo_jax.data.tables.files import fingerprint, home_of, open_file
from zppo_jax.data.tables.table import Row, RowError
from zppo_jax.errors import ConfigError

KEPT_BYTES = 256 << 20
"""Bytes of row groups that a process keeps."""
_BATCH_ROWS = 1024
_MOST_OPEN = 64
"""Files that a process keeps open: a corpus may have more of them than the system lets a process open."""
_FAULTS = (pa.ArrowException, OSError, ValueError, OverflowError)
"""What pyarrow raises for damaged files and for values that Python cannot hold, such as dates in far years."""


class ParquetTable:
    """The rows of parquet files, one after the other. Raises ConfigError for a file that is not parquet.

    A row is read with its whole row group: groups of some dozens of rows are quick (`row_group_size=32` when writing),
    groups of thousands of images are not.
    """

    def __init__(self, files: Sequence[str]):
        self.files = tuple(files)
        self._starts: list[int] = []  # the first row of each row group, and at last the number of rows
        self._groups: list[tuple[int, int]] = []  # (file, row group in it)
        total = 0
        for number, path in enumerate(self.files):
            for group, count in enumerate(_row_counts(path)):
                self._starts.append(total)
                self._groups.append((number, group))
                total += count
        self._starts.append(total)
        self._open()

    def _open(self) -> None:
        """Everything that belongs to one process."""
        self._lock = threading.Lock()
        self._readers: collections.OrderedDict[int, pq.ParquetFile] = collections.OrderedDict()
        self._kept: collections.OrderedDict[int, pa.Table] = collections.OrderedDict()
        self._kept_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("files", "_starts", "_groups")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __repr__(self) -> str:
        return f"ParquetTable({len(self.files)} files, {len(self)} rows)"

    def __len__(self) -> int:
        return self._starts[-1]

    def row(self, number: int) -> Row:
        group = self._group_of(number)
        try:
            with self._lock:
                table = self._kept.get(group)
                if table is None:
                    table = self._read(group)
                self._kept.move_to_end(group)
            return table.slice(number - self._starts[group], 1).to_pylist()[0]
        except _FAULTS as error:
            raise RowError(f"the file cannot be read ({' '.join(str(error).split())[:200]})") from error

    def columns(self, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        for number, path in enumerate(self.files):
            try:
                reader = self._reader(number)
                present = [name for name in names if name in reader.schema_arrow.names]
                if not present:
                    yield from itertools.repeat((None,) * len(names), reader.metadata.num_rows)
                    continue
                for batch in reader.iter_batches(_BATCH_ROWS, columns=present):
                    found = {name: batch.column(name).to_pylist() for name in present}
                    yield from zip(*(found.get(name, [None] * len(batch)) for name in names), strict=True)
            except _FAULTS as error:
                raise ConfigError(
                    f"{path} is damaged ({' '.join(str(error).split())[:200]}): write or download it again"
                ) from error

    def place(self, number: int) -> str:
        group = self._group_of(number)
        file = self._groups[group][0]
        first = next(start for (other, _), start in zip(self._groups, self._starts, strict=False) if other == file)
        return f"{self.files[file]}, row {number - first}"

    def home(self, number: int) -> str | None:
        return home_of(self.files[self._groups[self._group_of(number)][0]])

    def fingerprint(self) -> str:
        return fingerprint(self.files)

    def _group_of(self, number: int) -> int:
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} does not exist: there are {len(self)}")
        return bisect.bisect_right(self._starts, number) - 1

    def _reader(self, file: int) -> pq.ParquetFile:
        if file not in self._readers:
            path = self.files[file]
            # Without a memory map: a file that is cut off while it is mapped would kill the process.
            self._readers[file] = pq.ParquetFile(open_file(path) if "://" in path else path)
            if len(self._readers) > _MOST_OPEN:
                self._readers.popitem(last=False)[1].close(force=True)
        self._readers.move_to_end(file)
        return self._readers[file]

    def _read(self, group: int) -> pa.Table:
        """Reads a row group; forgets those that were not used for longest."""
        file, number = self._groups[group]
        table = self._reader(file).read_row_group(number, use_threads=False)
        self._kept[group] = table
        self._kept_bytes += table.nbytes
        while self._kept_bytes > KEPT_BYTES and len(self._kept) > 1:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return table


def _row_counts(path: str) -> list[int]:
    """The number of rows of each row group of a file that has any."""
    try:
        with open_file(path) as file:
            reader = pq.ParquetFile(file)
            _require_different_names(path, reader.schema_arrow.names)
            metadata = reader.metadata
            return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path} is not a parquet file, or damaged ({reason}): write or download it again") from error


def _require_different_names(path: str, names: Sequence[str]) -> None:
    twice = next((name for name, count in collections.Counter(names).items() if count > 1), None)
    if twice is not None:
        raise ConfigError(f"{path} has more than one column {twice!r}: give each its own name")
