"""Where questions come from: sources by name. A new source is a row of SOURCES and a file that reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from zppo_jax.config.schema import DataConfig
from zppo_jax.data.digits import DigitsSource, Family, Split
from zppo_jax.data.pipeline import QuestionSource
from zppo_jax.errors import ConfigError

Opener = Callable[[DataConfig, Split, int, int], QuestionSource]
"""Opens a source, from its section of the configuration, the split, a number of questions and a seed."""


def _digits(chosen: DataConfig, split: Split, num_questions: int, seed: int) -> QuestionSource:
    return DigitsSource(cast(Family, chosen.family), split, num_questions, seed)


SOURCES: dict[str, Opener] = {"digits": _digits}


def open_source(chosen: DataConfig, split: Split, num_questions: int, seed: int) -> QuestionSource:
    """The questions of a split of the source that `data.source` names; ConfigError where no source has that name."""
    if chosen.source not in SOURCES:
        raise ConfigError(f"data.source = {chosen.source!r}: there is no such source; give one of {', '.join(SOURCES)}")
    return SOURCES[chosen.source](chosen, split, num_questions, seed)
