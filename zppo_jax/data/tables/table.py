"""The interface of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

Row = Mapping[str, Any]


class RowError(ValueError):
    """A row cannot be read from its file; the message says why."""


class Table(Protocol):
    """Rows by their position, in a fixed order. `files` are paths and addresses, empty where others keep the files."""

    @property
    def files(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def row(self, number: int) -> Row:
        """All columns of a row, as plain values. Raises RowError."""
        ...

    def columns(self, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """These columns of every row in order, None where a row has none; reads no more than it must. A line that is
        not JSON gives None for each; raises ConfigError for a damaged file."""
        ...

    def place(self, number: int) -> str:
        """Where a row is, for errors: its file, and its number there, from 0."""
        ...

    def home(self, number: int) -> str | None:
        """The directory from which a row's relative paths start; None if it cannot have any."""
        ...

    def fingerprint(self) -> str:
        """A hash that changes with the rows: of names, sizes, times of change, first and last bytes of the files."""
        ...
