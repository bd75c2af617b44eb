"""Units of work, and what is remembered of a row: facts of fixed size, and never its image.

A unit is a run of row groups of one file. Its facts are a file in OUT/.build, named by a hash of all that they depend
on: the content of the input file, the row groups and the recipe. An interrupted build finds there what is finished.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zppo_jax.data.records import canonical_json
from zppo_jax.data.zppo77k import inputs
from zppo_jax.data.zppo77k.filters import REASONS, Reason
from zppo_jax.data.zppo77k.inputs import InputFile
from zppo_jax.files import write_atomically

VERSION = 2
"""Raised when the code gives other facts for the same recipe: finished units of the old code are then not used."""

_ROWS = 2000
"""Row groups are joined up to this number of rows, so that a unit is seconds of work."""

FACTS = np.dtype([("row", "<u4"), ("sub", "<u2"), ("key", "V16"), ("draw", "<u8")])
"""A row that passed the filters: its number in the file, its row in the recipe, its key and its random place."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """Row groups `first_group` to `last_group` (excluded) of a file; the first row has the number `first_row`."""

    file: InputFile
    first_group: int
    last_group: int
    first_row: int
    num_rows: int
    key: str


@dataclasses.dataclass(frozen=True, eq=False)
class Facts:
    """What a unit's rows are: `kept` [n] of FACTS in order, `counts` [recipe rows, reasons], `read` [recipe rows], and
    the rows of sources that are not in the recipe."""

    kept: np.ndarray
    counts: np.ndarray
    read: np.ndarray
    others: dict[str, int]

    @classmethod
    def empty(cls, num_subs: int) -> Facts:
        counts = np.zeros((num_subs, len(REASONS)), np.int64)
        return cls(np.zeros(0, FACTS), counts, np.zeros(num_subs, np.int64), {})

    def save(self, path: Path) -> None:
        """Writes the facts as a whole or not at all."""
        buffer = io.BytesIO()
        others = np.frombuffer(json.dumps(self.others).encode(), np.uint8)
        np.savez(buffer, kept=self.kept, counts=self.counts, read=self.read, others=others)
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Facts | None:
        """Reads facts; None if they are not there, or not whole."""
        try:
            with np.load(path, allow_pickle=False) as file:
                facts = cls(file["kept"], file["counts"], file["read"], json.loads(file["others"].tobytes()))
        except Exception:  # numpy and zipfile raise many kinds for a damaged file
            return None
        return facts if facts.kept.dtype == FACTS else None


def column(reason: Reason) -> int:
    """The column of a reason in `Facts.counts`."""
    return REASONS.index(reason)


def fingerprint(*parts: Any) -> str:
    """A hash of JSON values."""
    return hashlib.sha256(canonical_json([VERSION, *parts]).encode()).hexdigest()


def plan(files: Sequence[InputFile], digests: dict[str, str], recipe: str) -> list[Unit]:
    """The units of all files in order. `digests` has the SHA-256 of each file by name, `recipe` is its fingerprint."""
    return [unit for file in files for unit in _units_of(file, digests[file.name], recipe)]


def _units_of(file: InputFile, digest: str, recipe: str) -> list[Unit]:
    with inputs.opened(file.path) as parquet:
        metadata = parquet.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    units, first_group, first_row, num_rows = [], 0, 0, 0
    for group, size in enumerate(sizes):
        num_rows += size
        if num_rows >= _ROWS or group == len(sizes) - 1:
            key = fingerprint(recipe, digest, file.name, first_group, group + 1)
            units.append(Unit(file, first_group, group + 1, first_row, num_rows, key))
            first_group, first_row, num_rows = group + 1, first_row + num_rows, 0
    return [unit for unit in units if unit.num_rows]
