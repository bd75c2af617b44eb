"""Held-out accuracy by level, and how far it can be trusted."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from zppo_jax.actors.actor import Actor
from zppo_jax.data.pipeline import Item
from zppo_jax.parallel import Hosts
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.requests import Draw
from zppo_jax.types import Rollout

_95 = statistics.NormalDist().inv_cdf(0.975)


class Score(NamedTuple):
    """How many of `total` answers are `correct`, and what that says of the accuracy."""

    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.total

    @property
    def standard_error(self) -> float:
        """Half the width of Wilson's interval of one standard deviation: sqrt(p (1 - p) / n) but for terms of 1 / n,
        and not 0 where all answers are right or all are wrong, which would claim to know everything."""
        low, high = self.interval(1.0)
        return (high - low) / 2

    def interval(self, deviations: float = _95) -> tuple[float, float]:
        """Wilson's score interval (Wilson, 1927), by default that of 95 %: the accuracies of which what was found is no
        more than so many standard deviations off."""
        share, spread = self.accuracy, deviations**2 / self.total
        centre = (share + spread / 2) / (1 + spread)
        half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
        low, high = max(centre - half, 0.0), min(centre + half, 1.0)
        return low if self.correct else 0.0, high if self.correct < self.total else 1.0


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores overall and by level. `undecided` responses are neither right nor wrong; no score counts them as right."""

    overall: Score
    levels: dict[str, Score]
    undecided: int = 0

    def metrics(self) -> dict[str, float]:
        """The rows of metrics.jsonl: eval/accuracy with its standard error and Wilson's interval of 95 %,
        eval/accuracy/<level>, and eval/undecided."""
        low, high = self.overall.interval()
        found = {"accuracy": self.overall.accuracy, "standard_error": self.overall.standard_error}
        found |= {"wilson_low": low, "wilson_high": high, "undecided": self.undecided}
        found |= {f"accuracy/{level}": score.accuracy for level, score in self.levels.items()}
        return {f"eval/{name}": value for name, value in found.items()}

    def table(self) -> dict[str, tuple[float, float, float]]:
        """(accuracy, lower and upper end of its interval of 95 %) of the levels in order, then of all together."""
        scores = self.levels | {"all": self.overall}
        return {level: (score.accuracy, *score.interval()) for level, score in scores.items()}

    def to_json(self) -> dict[str, Any]:
        levels = {level: list(score) for level, score in self.levels.items()}
        return {"overall": list(self.overall), "levels": levels, "undecided": self.undecided}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Evaluation:
        levels = {level: Score(*counts) for level, counts in values["levels"].items()}
        return cls(Score(*values["overall"]), levels, values["undecided"])


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
    local = [[group.prompt.question.level, *_verdict(group.rollouts[0])] for group in groups]
    found = (hosts or Hosts()).gather_dealt(local, "the evaluation")
    total, right = Counter(level for level, _, _ in found), Counter(level for level, correct, _ in found if correct)
    levels = {level: Score(right[level], total[level]) for level in sorted(total)}
    undecided = sum(not decided for _, _, decided in found)
    return Evaluation(Score(right.total(), total.total()), levels, undecided)


def _verdict(rollout: Rollout) -> tuple[bool, bool]:
    """Whether the response is right, and whether that is known."""
    return bool(rollout.correct and rollout.decided), rollout.decided
