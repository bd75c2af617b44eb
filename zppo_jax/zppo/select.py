"""Selects hard questions, and the prompts that fit the caps (Sec. 3.1 and Algorithm 1 of arXiv:2606.18216).

Pure functions over the outcomes of all groups of a step, on whichever host they are, so that every host decides the
same. One combined cap holds for BCQ and NCQ together; it counts prompts, not questions.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from zppo_jax.config import step_size
from zppo_jax.keys import RandomStream
from zppo_jax.types import PLAIN_KINDS, Outcome
from zppo_jax.zppo.helps import HELPS


class PromptRef(NamedTuple):
    """A reformulated prompt as other hosts than its builder see it; `fits` says whether some bucket holds it."""

    uid: str
    kind: str
    fits: bool = True


def plain_accuracies(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Mean reward by question id, of plain and replayed groups only, in their order; these refresh the buffer.

    BCQ and NCQ groups are skipped: "mastered" means solved without candidates (App. C). So are groups with an
    undecided rollout: they have no mean, and the visit changes nothing. Raises ValueError if a question has two plain
    groups, because it would have two means.
    """
    accuracies: dict[str, float] = {}
    for outcome in _plain(outcomes):
        if outcome.question_id in accuracies:
            raise ValueError(f"question {outcome.question_id!r} has two plain groups in one step; draw it once")
        accuracies[outcome.question_id] = outcome.accuracy
    return accuracies


def hard(outcomes: Sequence[Outcome], threshold: float = 0.5) -> list[Outcome]:
    """The decided plain and replayed groups with a mean reward below the threshold, in their order (Sec. 3.1)."""
    return [outcome for outcome in _plain(outcomes) if outcome.accuracy < threshold]


def ranked(hard_outcomes: Sequence[Outcome], stream: RandomStream) -> list[Outcome]:
    """Sorts the groups, hardest first; new and replayed are ranked together (the order of Algorithm 1's pre-cap).

    Ties are broken by a hash of the stream and the question id, which is reproducible and does not favour early
    positions.
    """
    return sorted(hard_outcomes, key=lambda outcome: (outcome.accuracy, stream.hash(outcome.question_id)))


class Tally(NamedTuple):
    """What is known of a group that is still sampled: its size, and how many of its rollouts are right and wrong."""

    size: int
    right: int = 0
    wrong: int = 0

    @property
    def lowest(self) -> float:
        """The mean reward if all rollouts that are not decided yet turn out wrong."""
        return self.right / self.size

    @property
    def highest(self) -> float:
        """The mean reward if they all turn out right."""
        return (self.size - self.wrong) / self.size


def certain(
    tallies: Mapping[str, Tally], threshold: float, limit: int | None, stream: RandomStream, num_elsewhere: int = 0
) -> set[str]:
    """The questions that will be among the first `limit` of `ranked`, whatever the rest of their rollouts give; all
    that will be hard if the limit is None.

    `tallies` are those of this host's questions by id, `num_elsewhere` is the number of questions on other hosts, of
    which nothing is known. A group with an undecided rollout is not hard in the end; until then it counts as open.
    """
    hard = {name: tally for name, tally in tallies.items() if tally.highest < threshold}
    if limit is None:
        return set(hard)
    order = {name: stream.hash(name) for name in tallies}
    best = sorted((tally.lowest, order[name]) for name, tally in tallies.items() if tally.lowest < threshold)
    # Ahead of a question are at most those whose best place is before its worst one, itself not counted.
    return {
        name
        for name, tally in hard.items()
        if bisect.bisect_left(best, (tally.highest, order[name])) - (tally.lowest < tally.highest) + num_elsewhere
        < limit
    }


def post_cap(prompts_per_question: Iterable[Sequence[PromptRef]], limit: int) -> tuple[list[PromptRef], int]:
    """The first `limit` prompts that fit, and the number of prompts before the last of them that did not fit.

    The order is question by question as given (hardest first), BCQ before NCQ (Algorithm 1, post-cap): with one slot
    left, a question that has both keeps its BCQ prompt. `prompts_per_question` is read only until the cap is full.
    """
    if limit < 0:
        raise ValueError(f"a cap of {limit} prompts is negative; use 0 or more")
    kept: list[PromptRef] = []
    num_too_long, order = 0, list(HELPS)
    questions = iter(prompts_per_question)
    while len(kept) < limit and (prompts := next(questions, None)) is not None:
        for prompt in sorted(prompts, key=lambda prompt: order.index(prompt.kind)):
            if len(kept) < limit:
                kept += [prompt] * prompt.fits
                num_too_long += not prompt.fits
    return kept, num_too_long


def augmentation_limit(fraction: float, num_new: int) -> int:
    """The cap on BCQ and NCQ prompts per step, floor(rho_aug * |X_new|); 0 switches reformulation off."""
    return step_size.share_of_step("zppo.augmentation_fraction", fraction, num_new)


def replay_count(fraction: float, num_new: int) -> int:
    """The number of replayed questions per step, floor(rho_replay * |X_new|); 0 switches replay off."""
    return step_size.share_of_step("replay.fraction", fraction, num_new)


def _plain(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.kind in PLAIN_KINDS and outcome.decided]
