"""Sources of questions, by name: `digits`, or a kind of table and its place, as in `parquet:DIR`.

A new kind of table is a row of TABLES. `open_sources` gives the questions of a run: those to train on, and those held
out, which are never both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

from zppo_jax.config.schema import ColumnsConfig, Config, DataConfig
from zppo_jax.data import index as index_lib
from zppo_jax.data.digits import DigitsSource, Family, Split
from zppo_jax.data.questions import BadRow, Reader
from zppo_jax.data.reading import QuestionSource
from zppo_jax.data.tables import RowError, Table
from zppo_jax.errors import ConfigError
from zppo_jax.rewards.grade import ANSWER_TYPES
from zppo_jax.types import Question

Report = Callable[[str], None]

DIGITS = "digits"
_ROWS_LOOKED_AT = 100
_LARGEST_SHARE = 10
"""At most one question in so many of the training data is held out."""


def _parquet(place: str, split: str, key: str) -> Table:
    from zppo_jax.data.tables.files import find_files
    from zppo_jax.data.tables.parquet import ParquetTable

    return ParquetTable(find_files(place, (".parquet",), split, key))


def _jsonl(place: str, split: str, key: str) -> Table:
    from zppo_jax.data.tables.files import find_files
    from zppo_jax.data.tables.jsonl import JsonlTable

    return JsonlTable(find_files(place, (".jsonl", ".ndjson"), split, key))


def _arrayrecord(place: str, split: str, key: str) -> Table:
    from zppo_jax.data.tables.hub import RecordTable

    return RecordTable(place, split, key)


def _tfds(place: str, split: str, key: str) -> Table:
    """NAME[:SPLIT]; a name may hold a version (mnist:3.0.1), which is not a split."""
    name, _, last = place.rpartition(":")
    if name and not re.fullmatch(r"[\d.*]+", last):
        return _arrayrecord(name, last, key)
    return _arrayrecord(place, split, key)


def _hub(place: str, split: str, key: str) -> Table:
    from zppo_jax.data.tables.hub import HubTable

    return HubTable(place, split, key)


class Kind(NamedTuple):
    """A kind of table: how its place is written, what it is, and how it is opened (place, split, key of the config)."""

    form: str
    what: str
    open: Callable[[str, str, str], Table]


TABLES: dict[str, Kind] = {
    "parquet": Kind("parquet:DIR", "parquet files", _parquet),
    "jsonl": Kind("jsonl:FILE_OR_DIR", "files with a JSON object on each line", _jsonl),
    "arrayrecord": Kind("arrayrecord:DIR", "what zppo_jax.data.zppo77k writes", _arrayrecord),
    "tfds": Kind("tfds:NAME[:SPLIT]", "a prepared data set of TensorFlow Datasets", _tfds),
    "hf": Kind("hf:ID[:CONFIG[:SPLIT]]", "a data set of the Hugging Face hub, through datasets", _hub),
}
FORMS = (DIGITS, *(kind.form for kind in TABLES.values()))
"""How a source is written in `data.source` and `data.held_out`."""


@dataclasses.dataclass(frozen=True)
class TableSource:
    """The questions in the rows of a table."""

    table: Table
    index: index_lib.Index
    reader: Reader

    @property
    def answer_types(self) -> Mapping[str, int]:
        counts = self.index.counts(self.reader.answer_type)
        return {name: count for name, count in counts.items() if name in ANSWER_TYPES}  # the others are bad rows

    def ids(self) -> Iterator[str]:
        return iter(self.index.ids)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Question:
        try:
            row = self.table.row(index)
        except RowError as error:
            raise BadRow("row", str(error)) from error
        return self.reader.question(row, self.index.ids[index], self.table.home(index))

    def number_of(self, question_id: str, /) -> int:
        return self.index.numbers[question_id]

    def place(self, index: int) -> str:
        return self.table.place(index)


@dataclasses.dataclass(frozen=True)
class Part:
    """The questions of a source at these positions."""

    source: QuestionSource
    numbers: Sequence[int]

    @property
    def answer_types(self) -> Mapping[str, int]:
        return self.source.answer_types

    def ids(self) -> Iterator[str]:
        all_ids = list(self.source.ids())
        return (all_ids[number] for number in self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Question:
        return self.source[self.numbers[index]]

    @functools.cached_property
    def _places(self) -> dict[int, int]:
        return {number: place for place, number in enumerate(self.numbers)}

    def number_of(self, question_id: str, /) -> int:
        return self._places[self.source.number_of(question_id)]

    def place(self, index: int) -> str:
        return self.source.place(self.numbers[index])


class Sources(NamedTuple):
    """The questions to train on, and the held-out ones."""

    training: QuestionSource
    held_out: QuestionSource


def open_sources(config: Config, report: Report = lambda text: None) -> Sources:
    """Opens the sources that `data.source` and `data.held_out` name. Raises ConfigError.

    Of a table, at most `data.num_questions` are trained on and `eval.num_questions` held out, chosen by a hash of seed
    and id: the same whatever the order of the rows. Without `data.held_out` the digits have their own test split, and
    of a table a share is taken out of the training questions.
    """
    chosen, seed = config.data, config.seed
    if chosen.answer_type not in ANSWER_TYPES:
        raise ConfigError(f"data.answer_type = {chosen.answer_type!r} is unknown: use one of {', '.join(ANSWER_TYPES)}")
    source = open_source(chosen, "source", report, config)
    if chosen.held_out:
        held_out = open_source(chosen, "held_out", report, config)
        _require_apart(source, held_out)
        wanted = min(config.eval.num_questions, len(held_out))
        return Sources(_first(source, chosen.num_questions, seed), _first(held_out, wanted, seed))
    if chosen.source == DIGITS:
        test = DigitsSource(cast(Family, chosen.family), "test", config.eval.num_questions, seed)
        return Sources(source, test)
    count = min(config.eval.num_questions, len(source) // _LARGEST_SHARE)
    if count == 0:
        raise ConfigError(
            f"data.source = {chosen.source!r} has {len(source)} questions, too few to hold some out: name others by "
            "data.held_out"
        )
    ranked = _ranked(source, seed)
    taken, left = sorted(ranked[:count]), ranked[count:]
    report(f"{count} of {len(source)} questions are held out")
    return Sources(Part(source, sorted(left[: chosen.num_questions])), Part(source, taken))


def open_source(chosen: DataConfig, key: str, report: Report, config: Config) -> QuestionSource:
    """Opens the source that a key of the section (`source` or `held_out`) names. Raises ConfigError."""
    name, split = (chosen.source, chosen.split) if key == "source" else (chosen.held_out, chosen.held_out_split)
    if name == DIGITS:
        part = "train" if key == "source" else "test"
        count = chosen.num_questions if key == "source" else config.eval.num_questions
        return DigitsSource(cast(Family, chosen.family), cast(Split, part), count, config.seed)
    return open_table(
        name, split, f"data.{key}", Reader(chosen.columns, chosen.answer_type, chosen.allow_outside), report
    )


def open_table(name: str, split: str, key: str, reader: Reader, report: Report) -> TableSource:
    """Opens a table by its name, as in `parquet:DIR`, with its index. Raises ConfigError, naming the key."""
    kind, _, place = name.partition(":")
    if kind not in TABLES or not place:
        raise ConfigError(f"{key} = {name!r}: there is no such source; give one of {', '.join(FORMS)}")
    table = TABLES[kind].open(place, split, key)
    index = index_lib.load(table, reader.columns.id, reader.columns.answer_type, _folder(place), report)
    if not len(table):
        raise ConfigError(f"{key} = {name!r} has no rows")
    _require_columns(table, reader.columns, f"{key} = {name!r}")
    return TableSource(table, index, reader)


def _require_columns(table: Table, columns: ColumnsConfig, what: str) -> None:
    """Raises ConfigError for a column that the user has named and that none of the first rows has: a mistyped one would
    silently mean that there is none."""
    given = dataclasses.asdict(columns)
    renamed = {name: column for name, column in given.items() if column != name}
    found: dict[str, None] = {}
    for number in range(min(len(table), _ROWS_LOOKED_AT) if renamed else 0):
        with contextlib.suppress(RowError):
            found |= dict.fromkeys(table.row(number))
    for name, column in renamed.items():
        if found and column not in found:
            raise ConfigError(
                f"data.columns.{name} = {column!r}: the rows of {what} have no such column; they have "
                f"{', '.join(found)}"
            )


def _folder(place: str) -> Path:
    """Where the index of a table is kept: beside the data, if they are on this disk."""
    if not os.path.exists(place):
        return index_lib.cache()
    return (Path(place) if os.path.isdir(place) else Path(place).parent) / ".zppo_jax"


def _require_apart(source: QuestionSource, held_out: QuestionSource) -> None:
    """Raises ConfigError if held-out questions are rows of the training table."""
    if not (isinstance(source, TableSource) and isinstance(held_out, TableSource)):
        return
    same = source.table.fingerprint() == held_out.table.fingerprint()
    shared = sorted(_real_files(source.table) & _real_files(held_out.table))
    if same or shared:
        raise ConfigError(
            f"data.held_out names {shared[0] if shared else 'the rows'}, which data.source names too: give other "
            'files, another data.held_out_split, or leave data.held_out="" to take out a share'
        )


def _real_files(table: Table) -> set[str]:
    return {path if "://" in path else os.path.realpath(path) for path in table.files}


def _ranked(source: QuestionSource, seed: int) -> list[int]:
    """The positions of all questions, ordered by a hash of seed and id."""

    def rank(pair: tuple[int, str]) -> bytes:
        return hashlib.blake2b(f"{seed}/{pair[1]}".encode("utf-8", "surrogatepass"), digest_size=16).digest()

    return [number for number, _ in sorted(enumerate(source.ids()), key=rank)]


def _first(source: QuestionSource, count: int, seed: int) -> QuestionSource:
    """The source itself, or, if it has more than `count` questions, as many chosen by a hash of seed and id."""
    return source if len(source) <= count else Part(source, sorted(_ranked(source, seed)[:count]))
