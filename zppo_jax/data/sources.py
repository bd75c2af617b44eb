"""Sources of questions, by name. A new source is a row of SOURCES and a file that reads it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

from zppo_jax.config.schema import DataConfig
from zppo_jax.data.digits import DigitsSource, Family, Split
from zppo_jax.data.pipeline import QuestionSource
from zppo_jax.errors import ConfigError
from zppo_jax.types import Question

Opener = Callable[[DataConfig, Split, int, int], QuestionSource]
"""Opens a source, given its section of the configuration, the split, a number of questions and a seed."""


def _digits(chosen: DataConfig, split: Split, num_questions: int, seed: int) -> QuestionSource:
    return DigitsSource(cast(Family, chosen.family), split, num_questions, seed)


@dataclasses.dataclass(frozen=True)
class Share(Sequence[Question]):
    """The questions of a source at these positions, each read on access."""

    source: QuestionSource
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return Share(self.source, self.numbers[place])
        return self.source[self.numbers[place]]


SOURCES: dict[str, Opener] = {"digits": _digits}


def open_source(chosen: DataConfig, split: Split, num_questions: int, seed: int) -> QuestionSource:
    """Opens a split of the source that `data.source` names; raises ConfigError if no source has that name."""
    if chosen.source not in SOURCES:
        raise ConfigError(f"data.source = {chosen.source!r}: there is no such source; give one of {', '.join(SOURCES)}")
    return SOURCES[chosen.source](chosen, split, num_questions, seed)
