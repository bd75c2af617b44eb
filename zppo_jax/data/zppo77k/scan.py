"""The first pass, a unit at a time: every filter on every row, and facts of fixed size about those that are kept.

Also the second reading of chosen rows, for the output. Both stream: a batch of rows is in memory, and no row group.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from zppo_jax.data.records import Record
from zppo_jax.data.zppo77k import inputs, keys, mmfinereason, upstream, vero
from zppo_jax.data.zppo77k.evaluation import Evaluation
from zppo_jax.data.zppo77k.filters import Asked, Looker, Reason, ask
from zppo_jax.data.zppo77k.inputs import InputFile
from zppo_jax.data.zppo77k.recipe import Settings, SubDataset
from zppo_jax.data.zppo77k.units import FACTS, Facts, Unit, column
from zppo_jax.data.zppo77k.upstream import Upstream
from zppo_jax.processor import Processor

_BATCH = 16
"""Rows whose images are in memory at once."""

_TEXT_BATCH = 256
_IMAGES = ("image", "images")
_VIDEOS = ("video", "videos")


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker needs to know: picklable, and the same for all units of a build."""

    settings: Settings
    rows: tuple[SubDataset, ...]
    in_vero: frozenset[str]
    tokenizer: str
    evaluation: Path | None = None


class Scanner:
    """Reads rows as a job says. A process has one; made with its tokenizer, which takes a second."""

    def __init__(self, job: Job):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such images are refused and counted
        self.job = job
        self._subs = {(row.corpus, row.upstream.casefold()): number for number, row in enumerate(job.rows)}
        self._evaluation = Evaluation.load(job.evaluation) if job.evaluation else Evaluation()
        self._looker: Looker | None = None

    @property
    def looker(self) -> Looker:
        """The filters with a tokenizer, which is loaded on first use: a build without rows needs none."""
        if self._looker is None:
            settings = self.job.settings
            pixels = {"min_pixels": settings.min_pixels, "max_pixels": settings.max_pixels}
            self._looker = Looker(Processor.from_directory(self.job.tokenizer, **pixels), settings)
        return self._looker

    def facts(self, unit: Unit) -> Facts:
        """The facts of a unit. Raises RunError, naming the file, for one that cannot be read."""
        facts = Facts.empty(len(self.job.rows))
        kept = []
        with inputs.opened(unit.file.path) as parquet:
            first = unit.first_row
            for group in range(unit.first_group, unit.last_group):
                kept += self._facts_of_group(parquet, unit.file, group, first, facts)
                first += parquet.metadata.row_group(group).num_rows
        return dataclasses.replace(facts, kept=np.array(kept, FACTS))

    def _facts_of_group(
        self, parquet: pq.ParquetFile, file: InputFile, group: int, first: int, facts: Facts
    ) -> list[tuple[Any, ...]]:
        """The rows of FACTS of a row group; what is dropped is counted in `facts`."""
        asked = self._asked_in_group(parquet, file, group, facts)
        kept = []
        for number, images, videos in _media(parquet, group, asked.keys()):
            sub, outcome = asked[number]
            key = self._key(outcome, images, videos)
            if isinstance(key, Reason):
                facts.counts[sub, column(key)] += 1
            else:
                place = keys.draw(self.job.settings.seed, file.row_id(first + number))
                kept.append((first + number, sub, key, place))
        return kept

    def _asked_in_group(
        self, parquet: pq.ParquetFile, file: InputFile, group: int, facts: Facts
    ) -> dict[int, tuple[int, Asked]]:
        """The rows of a group that their texts do not drop: (row of the recipe, what is asked) by number."""
        asked: dict[int, tuple[int, Asked]] = {}
        for number, row in self._texts(parquet, file, group):
            sub = self._subs.get((file.corpus, row.upstream.casefold()))
            if sub is None:
                facts.others[row.upstream] = facts.others.get(row.upstream, 0) + 1
                continue
            facts.read[sub] += 1
            outcome = ask(row, self.job.rows[sub], self.job.settings, self.job.in_vero)
            if isinstance(outcome, Reason):
                facts.counts[sub, column(outcome)] += 1
            else:
                asked[number] = sub, outcome
        return asked

    def _key(self, asked: Asked, images: list[bytes | None], videos: list[bytes | None]) -> bytes | Reason:
        seen = self.looker.look(asked, images, videos)
        if isinstance(seen, Reason):
            return seen
        image_keys = [keys.image_key(image) for image in seen]
        if self._evaluation.shares(asked.question, image_keys, self.job.settings.decontaminate_by):
            return Reason.DECONTAMINATED
        return keys.row_key(asked.question, [*image_keys, *(keys.file_key(film or b"") for film in videos)])

    def _texts(self, parquet: pq.ParquetFile, file: InputFile, group: int) -> Iterator[tuple[int, Upstream]]:
        """(number in the group, texts) of all rows of a row group."""
        names, settings = parquet.schema_arrow.names, self.job.settings
        if file.corpus == "vero":
            columns = vero.text_columns(names, file.path)
        else:
            needs_rate = settings.missing_pass_rate == "drop"
            columns = mmfinereason.text_columns(names, file.path, needs_rate, settings.recover_golds)
        for number, cells in _cells(parquet, group, columns, _TEXT_BATCH):
            if file.corpus == "vero":
                yield number, vero.row(cells, file.upstream)
            else:
                yield number, mmfinereason.row(cells, settings.recover_golds)

    def records(self, file: InputFile, wanted: Collection[int]) -> Iterator[Record]:
        """The records of these rows of a file, by number and in order; they passed the filters in the first pass."""
        wanted, first = frozenset(wanted), 0
        with inputs.opened(file.path) as parquet:
            for group in range(parquet.metadata.num_row_groups):
                size = parquet.metadata.row_group(group).num_rows
                here = {row - first for row in wanted if first <= row < first + size}
                if here:
                    texts = {number: row for number, row in self._texts(parquet, file, group) if number in here}
                    for number, images, videos in _media(parquet, group, here):
                        yield self._record(file, first + number, texts[number], images, videos)
                first += size

    def _record(
        self, file: InputFile, number: int, row: Upstream, images: list[bytes | None], videos: list[bytes | None]
    ) -> Record:
        sub = self.job.rows[self._subs[file.corpus, row.upstream.casefold()]]
        asked = ask(row, sub, self.job.settings, self.job.in_vero)
        assert isinstance(asked, Asked), f"{file.name}, row {number} was kept and is now dropped: {asked}"
        facts = {"corpus": file.corpus, "source": sub.upstream, "tier": sub.tier, "upstream_id": row.id}
        optional = {"reward_type": row.reward_type or None, "pass_rate": row.pass_rate, **row.extra}
        return Record(
            id=file.row_id(number),
            question=asked.question,
            answer=asked.answer,
            answer_type=asked.answer_type,
            images=tuple(one or b"" for one in images),
            videos=tuple(one or b"" for one in videos),
            options=asked.options,
            level=sub.name,
            metadata=facts | {name: value for name, value in optional.items() if value is not None},
        )


def _media(
    parquet: pq.ParquetFile, group: int, wanted: Collection[int]
) -> Iterator[tuple[int, list[bytes | None], list[bytes | None]]]:
    """(number, images, videos) of the wanted rows of a row group; nothing is read if there are none."""
    if not wanted:
        return
    columns = [name for name in (*_IMAGES, *_VIDEOS) if name in parquet.schema_arrow.names]
    for number, cells in _cells(parquet, group, columns, _BATCH, wanted):
        yield number, _files(cells, _IMAGES), _files(cells, _VIDEOS)


def _files(cells: Mapping[str, Any], names: tuple[str, ...]) -> list[bytes | None]:
    return next((found for name in names if (found := upstream.media(cells.get(name)))), [])


def _cells(
    parquet: pq.ParquetFile, group: int, columns: list[str], size: int, wanted: Collection[int] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, cells) of the rows of a row group, all or the wanted ones. Without columns the cells are empty."""
    if not columns:
        num_rows = parquet.metadata.row_group(group).num_rows
        yield from ((number, {}) for number in range(num_rows) if wanted is None or number in wanted)
        return
    first = 0
    for batch in parquet.iter_batches(size, row_groups=[group], columns=columns, use_threads=False):
        for number in range(batch.num_rows):
            if wanted is None or first + number in wanted:
                yield first + number, {name: batch.column(name)[number].as_py() for name in columns}
        first += batch.num_rows
