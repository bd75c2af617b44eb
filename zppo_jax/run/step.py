"""The result of one training step, and its row of metrics."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from zppo_jax.data.pipeline import StepBatch
from zppo_jax.rewards import Status
from zppo_jax.rollout.counters import Counters
from zppo_jax.types import Cohort, Group, Outcome
from zppo_jax.update.learner import Updated
from zppo_jax.zppo import HELPS


@dataclasses.dataclass(frozen=True)
class Step:
    """The result of one training step.

    Attributes:
      number: the number of the step; the first is 1.
      plain: the groups on new and replayed questions.
      hard: the outcomes of the hard ones.
      reformulated: the groups on prompts with help.
      helped: metrics of how these prompts were made.
      sampler: the counters of the samplers of all hosts.
      learned: the groups that were learned from.
      update: the result of the update (without the state).
      replay: the changes and the contents of the replay buffer after the step; {} without a buffer.
      batch: the questions of the step, with those that were left out of it.
    """

    number: int
    plain: Cohort
    hard: Sequence[Outcome]
    reformulated: Cohort
    helped: Mapping[str, int]
    sampler: Counters
    learned: Cohort
    update: Updated
    replay: Mapping[str, int]
    batch: StepBatch

    @property
    def groups(self) -> tuple[Group, ...]:
        """This host's groups: the student's, then those of the teacher that were learned from, if any."""
        students = self.plain.groups + self.reformulated.groups
        return students + tuple(group for group in self.learned.groups if group.author != "student")

    @property
    def advantages(self) -> dict[str, np.ndarray]:
        """The weight of each response in the loss of the first epoch, [G] by the uid of its group; of all hosts. A
        group that is not learned from has none."""
        pairs = zip(self.learned.outcomes, self.update.weights_PG, strict=True)
        return {outcome.uid: weights_G for outcome, weights_G in pairs}

    @property
    def skipped(self) -> dict[int, list[Group]]:
        """This host's groups of each update that was skipped as not finite, by the number of the update."""
        outcomes = self.learned.outcomes
        return {
            number: self.learned.groups_of([outcomes[p] for p in part]) for number, part in self.update.skipped.items()
        }

    def metrics(self) -> dict[str, Any]:
        """The row of metrics.jsonl, under the names of run.metrics.

        `rollout/accuracy` and `rollout/hard_fraction` cover all plain groups, replayed questions included, which are
        harder than new ones: compare methods with and without a buffer by `rollout/new_accuracy` and
        `rollout/new_hard_fraction`. Groups with an undecided rollout have no accuracy.
        """
        row = _rollouts(self.plain.outcomes, self.hard, self.reformulated.outcomes)
        row |= {"data/skipped": self.batch.num_skipped}
        row |= {"rollout/occupancy": self.sampler.occupancy, "rollout/longest": self.sampler.longest}
        row |= {f"update/{name}": value for name, value in self.update.metrics.items()} | dict(self.helped)
        return row | {f"replay/{name}": value for name, value in self.replay.items()}


def _rollouts(plain: Sequence[Outcome], hard: Sequence[Outcome], helped: Sequence[Outcome]) -> dict[str, Any]:
    everything = [*plain, *helped]
    num_rollouts = sum(len(outcome.correct) for outcome in everything)
    num_tokens = sum(outcome.num_tokens for outcome in everything)
    new, hard_uids = [outcome for outcome in plain if outcome.kind == "plain"], {outcome.uid for outcome in hard}
    statuses = collections.Counter(status for outcome in everything for status in outcome.statuses)
    metrics: dict[str, Any] = {
        "rollout/accuracy": _accuracy(plain),
        "rollout/new_accuracy": _accuracy(new),
        "rollout/hard_fraction": _share(plain, hard_uids),
        "rollout/new_hard_fraction": _share(new, hard_uids),
        "zppo/hard": len(hard),
        "rollout/undecided": sum(outcome.num_undecided for outcome in everything),
        **{f"reward/{status}": statuses[status] for status in Status},
        "rollout/tokens": num_tokens,
        "rollout/entropy": -sum(outcome.logprob for outcome in everything) / max(num_tokens, 1),
        "rollout/truncated_fraction": sum(outcome.num_truncated for outcome in everything) / num_rollouts,
    }
    for kind in ("replay", *HELPS):
        groups = [outcome for outcome in everything if outcome.kind == kind]
        prefix = "replay/" if kind == "replay" else f"zppo/{kind}_"
        metrics |= {f"{prefix}groups": len(groups), f"{prefix}accuracy": _accuracy(groups)}
    return metrics


def _share(outcomes: Sequence[Outcome], uids: Collection[str]) -> float | None:
    """The share of the decided groups that have these uids; None if no group is decided."""
    decided = [outcome for outcome in outcomes if outcome.decided]
    return sum(outcome.uid in uids for outcome in decided) / len(decided) if decided else None


def _accuracy(outcomes: Sequence[Outcome]) -> float | None:
    """The mean accuracy of the decided groups; None if there are none."""
    accuracies = [outcome.accuracy for outcome in outcomes if outcome.decided]
    return float(np.mean(accuracies)) if accuracies else None
