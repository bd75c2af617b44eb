"""Held-out accuracy by level, with its standard error."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zppo_jax.actor import Actor
from zppo_jax.data.pipeline import Item
from zppo_jax.parallel import Hosts
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.requests import Draw


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """(accuracy, standard error) overall and by level, both in [0, 1]."""

    overall: tuple[float, float]
    levels: dict[str, tuple[float, float]]

    def metrics(self) -> dict[str, float]:
        """The rows of metrics.jsonl: eval/accuracy, eval/standard_error and eval/accuracy/<level>."""
        return {"eval/accuracy": self.overall[0], "eval/standard_error": self.overall[1]} | {
            f"eval/accuracy/{level}": accuracy for level, (accuracy, _) in self.levels.items()
        }

    def table(self) -> dict[str, tuple[float, float]]:
        """Levels in order, then all together."""
        return self.levels | {"all": self.overall}

    def to_json(self) -> dict[str, list[float]]:
        return {level: list(pair) for level, pair in self.table().items()}

    @classmethod
    def from_json(cls, table: Mapping[str, Sequence[float]]) -> Evaluation:
        levels = {level: (pair[0], pair[1]) for level, pair in table.items()}
        return cls(levels.pop("all"), levels)


def accuracy(correct: Sequence[bool]) -> tuple[float, float]:
    """Mean and its standard error, sqrt(p (1 - p) / n), of right-or-wrong verdicts."""
    mean = float(np.mean(correct))
    return mean, math.sqrt(mean * (1.0 - mean) / len(correct))


def evaluate(
    actor: Actor,
    params: dict[str, Any],
    items: Sequence[Item],
    sampling: Sampling,
    *,
    seed: int,
    step: int,
    hosts: Hosts | None = None,
) -> Evaluation:
    """One response a question (pass@1), drawn as `sampling` says. `items` are this host's share of the questions."""
    groups = actor.answer(params, items, 1, sampling, Draw(seed, step, "evaluate"))
    own = [[group.prompt.question.level, bool(group.rollouts[0].correct)] for group in groups]
    by_level: dict[str, list[bool]] = {}
    for level, correct in (hosts or Hosts()).gather_dealt(own, "the evaluation"):
        by_level.setdefault(level, []).append(correct)
    everything = [correct for level in by_level.values() for correct in level]
    return Evaluation(accuracy(everything), {level: accuracy(by_level[level]) for level in sorted(by_level)})
