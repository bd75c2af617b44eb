"""The index of a table: the ids and answer types of its questions, found once and kept beside the data.

A replayed question is read again by its id, and a run must know before it begins whether ids differ and whether every
type can be scored. For a large corpus this means reading a column of every file, so the result is kept, with the hash
of what it indexes.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zppo_jax.data.tables import Table
from zppo_jax.errors import ConfigError
from zppo_jax.files import write_atomically

_VERSION = 2
_REPORT_EVERY = 20_000


@dataclasses.dataclass(frozen=True)
class Index:
    """The id and the answer type of each row, in order; the type is None where the row has none."""

    ids: tuple[str, ...]
    types: tuple[str | None, ...]

    @functools.cached_property
    def numbers(self) -> dict[str, int]:
        """The row of each id."""
        return {one: number for number, one in enumerate(self.ids)}

    def counts(self, default: str) -> dict[str, int]:
        """How many questions have each answer type; `default` is the type of those without one."""
        return dict(collections.Counter(one or default for one in self.types))


def load(table: Table, id_column: str, type_column: str, folder: Path, report: Callable[[str], None]) -> Index:
    """The index of a table: read from `folder` or, if that cannot be written, from the user's cache; built if it is not
    there or the data has changed. Raises ConfigError for ids that come twice, naming both rows."""
    key = hashlib.sha256(json.dumps([_VERSION, id_column, type_column, repr(table), table.fingerprint()]).encode())
    name = f"index-{key.hexdigest()[:32]}.json"
    for place in (folder, cache()):
        kept = _read(place / name, len(table))
        if kept is not None:
            return kept
    found = _built(table, id_column, type_column, report)
    content = json.dumps(dataclasses.asdict(found), ensure_ascii=False).encode("utf-8", "surrogatepass")
    for place in (folder, cache()):
        try:
            place.mkdir(parents=True, exist_ok=True)
            write_atomically(place / name, content)
            break
        except OSError:
            continue  # a data directory is often read-only; without any place it is built again by each run
    return found


def cache() -> Path:
    """Where indices are kept that cannot be beside their data."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zppo_jax" / "data"


def _read(file: Path, size: int) -> Index | None:
    """The kept index; None if there is none, or it is damaged."""
    try:
        values: dict[str, Any] = json.loads(file.read_bytes())
        index = Index(tuple(values["ids"]), tuple(values["types"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    texts = all(isinstance(one, str) for one in index.ids) and all(isinstance(one, str | None) for one in index.types)
    whole = texts and len(set(index.ids)) == len(index.ids) == len(index.types) == size
    return index if whole else None


def _built(table: Table, id_column: str, type_column: str, report: Callable[[str], None]) -> Index:
    ids: list[str] = []
    types: list[str | None] = []
    places: dict[str, int] = {}
    for number, (one, kind) in enumerate(table.columns((id_column, type_column))):
        name = _text(one)
        name = f"row-{number:06d}" if name is None else name
        if name in places:
            raise ConfigError(
                f"the question id {name!r} comes twice: {table.place(places[name])}, and {table.place(number)}. Ids "
                "must differ: give each question its own, or name another column by data.columns.id"
            )
        places[name] = number
        ids.append(name)
        types.append(_text(kind))
        if number % _REPORT_EVERY == _REPORT_EVERY - 1:
            report(f"{number + 1:,} of {len(table):,} questions indexed")
    return Index(tuple(ids), tuple(types))


def _text(value: Any) -> str | None:
    """A value as the text that identifies; None for nothing."""
    if value is None or value == "" or value != value:
        return None
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
