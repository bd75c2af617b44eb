"""The second pass: chosen rows are read again and written, a shard at a time, as ArrayRecord or parquet.

A shard is written beside its place and moved there when it is whole. A note about it, with a hash of all that it
depends on, lets an interrupted build keep it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from zppo_jax.data import records
from zppo_jax.data.records import Record
from zppo_jax.data.zppo77k.inputs import InputFile
from zppo_jax.data.zppo77k.units import Unit, fingerprint
from zppo_jax.errors import RunError
from zppo_jax.files import read_file, write_atomically

Format = Literal["arrayrecord", "parquet"]
FORMATS: tuple[Format, ...] = ("arrayrecord", "parquet")

_ROWS = 1000
"""Questions in a shard."""

_ROW_GROUP = 32
"""Rows of a parquet row group: what a read of one row decodes."""

_FILES = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
SCHEMA = pa.schema(
    [*((name, pa.string()) for name in ("id", "question", "answer", "answer_type")), ("images", _FILES),
     ("videos", _FILES), *((name, pa.string()) for name in ("options", "level", "metadata"))]
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard of the output: its name, and its rows as (file, numbers) in order."""

    name: str
    rows: tuple[tuple[InputFile, tuple[int, ...]], ...]
    key: str

    @property
    def num_rows(self) -> int:
        return sum(len(numbers) for _, numbers in self.rows)


@dataclasses.dataclass(frozen=True)
class Note:
    """What is remembered of a finished shard: the key of its content, its records, their bytes, and the file's size."""

    key: str
    num_records: int
    num_bytes: int
    file_size: int


def plan(units: Sequence[Unit], unit_N: np.ndarray, row_N: np.ndarray, kind: Format) -> list[Shard]:
    """The shards of the chosen rows, in the order of the inputs; there is one even for no rows."""
    count = max(1, -(-len(row_N) // _ROWS))
    return [
        _shard(units, unit_N[start : start + _ROWS], row_N[start : start + _ROWS], name_of(number, count, kind), kind)
        for number, start in enumerate(range(0, count * _ROWS, _ROWS))
    ]


def _shard(units: Sequence[Unit], unit_N: np.ndarray, row_N: np.ndarray, name: str, kind: Format) -> Shard:
    pairs = [(units[unit], int(row)) for unit, row in zip(unit_N, row_N, strict=True)]
    by_file = itertools.groupby(pairs, key=lambda pair: pair[0].file)
    rows = tuple((file, tuple(row for _, row in group)) for file, group in by_file)
    return Shard(name, rows, fingerprint(kind, name, [(unit.key, row) for unit, row in pairs]))


def name_of(number: int, count: int, kind: Format) -> str:
    """The file name of a shard."""
    if kind == "parquet":
        return f"{records.SPLIT}-{number:05d}-of-{count:05d}.parquet"
    return records.shard_name(number, count)


def write(directory: Path, workspace: Path, shard: Shard, kind: Format, content: Iterable[Record]) -> Note:
    """Writes a shard and its note, each as a whole or not at all. Raises OSError if the disk is full."""
    temporary = workspace / f"{shard.name}.tmp"
    writer = records.write_shard if kind == "arrayrecord" else write_parquet
    with _disk_errors(temporary):
        num_records, num_bytes = writer(temporary, content)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
        size = os.fstat(file.fileno()).st_size
    if num_records != shard.num_rows:
        raise RunError(f"{shard.name} has {num_records} of {shard.num_rows} rows: the inputs changed; build again")
    temporary.replace(directory / shard.name)
    note = Note(shard.key, num_records, num_bytes, size)
    write_atomically(workspace / f"{shard.name}.json", json.dumps(dataclasses.asdict(note)).encode())
    return note


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """ArrayRecord's writer raises RuntimeError when a write fails; everything else keeps its kind."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, RunError):
            raise
        reason = " ".join(str(error).split())[:160]
        raise RunError(f"{path} cannot be written ({reason}): free some space, then run the same command") from error


def finished(directory: Path, workspace: Path, shard: Shard) -> Note | None:
    """The note of a shard that is already there, whole and made from the same rows; else None."""
    try:
        note = Note(**json.loads(read_file(workspace / f"{shard.name}.json") or b"{}"))
        size = (directory / shard.name).stat().st_size
    except (TypeError, ValueError, OSError):
        return None
    return note if note.key == shard.key and note.file_size == size else None


def write_parquet(path: str | os.PathLike[str], content: Iterable[Record]) -> tuple[int, int]:
    """Writes records as parquet with the same columns and small row groups; returns (number, bytes of the file)."""
    count = 0
    with pq.ParquetWriter(os.fspath(path), SCHEMA, compression="zstd", use_dictionary=False) as file:
        for batch in _batches(content, _ROW_GROUP):
            file.write_table(pa.Table.from_pylist(batch, schema=SCHEMA), row_group_size=_ROW_GROUP)
            count += len(batch)
    return count, os.stat(path).st_size


def _batches(content: Iterable[Record], size: int) -> Iterator[list[dict[str, Any]]]:
    rows = iter(content)
    while batch := list(itertools.islice(rows, size)):
        yield [_cells(record) for record in batch]


def _cells(record: Record) -> dict[str, Any]:
    cells = record.columns()
    media = {name: [{"bytes": one, "path": None} for one in cells[name]] for name in ("images", "videos")}
    return cells | media
