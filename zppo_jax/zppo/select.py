"""Which questions are hard, and which of their prompts fit the caps (Sec. 3.1 and Algorithm 1 of arXiv:2606.18216).

Pure functions over groups and prompts. One combined cap holds for BCQ and NCQ together, and it is counted in
prompts, not in questions.
"""

from __future__ import annotations

import fractions
import math
from collections.abc import Sequence

from zppo_jax.types import Group, Prompt
from zppo_jax.zppo import keys
from zppo_jax.zppo.reformulate import REFORMULATIONS


def plain_accuracies(groups: Sequence[Group]) -> dict[str, float]:
    """Mean reward by question id, of plain and replayed groups alone, in their order: what refreshes the buffer.

    BCQ and NCQ groups are passed over: "mastered" means solved without candidates (App. C). ValueError when a question
    has two plain groups, for then it has two means.
    """
    accuracies: dict[str, float] = {}
    for group in _plain(groups):
        question_id = group.prompt.question.id
        if question_id in accuracies:
            raise ValueError(f"question {question_id!r} has two plain groups in one step; draw it once")
        accuracies[question_id] = group.accuracy
    return accuracies


def hard(groups: Sequence[Group], threshold: float = 0.5) -> list[Group]:
    """The plain and replayed groups with a mean reward below the threshold, in their order (Sec. 3.1)."""
    return [group for group in _plain(groups) if group.accuracy < threshold]


def pre_cap(hard_groups: Sequence[Group], limit: int, seed: int, step: int) -> list[Group]:
    """The `limit` hardest groups, hardest first (Algorithm 1, pre-cap); new and replayed are ranked together.

    Ties are broken by a hash of (seed, step, question id): reproducible, and without favour for early positions.
    """

    def rank(group: Group) -> tuple[float, int]:
        return group.accuracy, keys.stable_hash("pre_cap_ties", seed, step, group.prompt.question.id)

    return sorted(hard_groups, key=rank)[: _checked(limit)]


def post_cap(prompts_per_question: Sequence[Sequence[Prompt]], limit: int) -> list[Prompt]:
    """The first `limit` prompts, question by question in pre-cap order, BCQ before NCQ (Algorithm 1, post-cap).

    The first prompt that would exceed the limit is skipped and the walk ends there: with one slot left, a question
    that has both keeps its BCQ prompt.
    """
    order = {row.kind: position for position, row in enumerate(REFORMULATIONS.values())}
    walk = [prompt for prompts in prompts_per_question for prompt in sorted(prompts, key=lambda p: order[p.kind])]
    return walk[: _checked(limit)]


def augmentation_limit(fraction: float, num_new: int) -> int:
    """The cap on BCQ and NCQ prompts a step, floor(rho_aug * |X_new|); 0 switches reformulation off."""
    return _share("zppo.augmentation_fraction", fraction, num_new)


def replay_count(fraction: float, num_new: int) -> int:
    """The number of replayed questions a step, floor(rho_replay * |X_new|); 0 switches replay off."""
    return _share("replay.fraction", fraction, num_new)


def _plain(groups: Sequence[Group]) -> list[Group]:
    return [group for group in groups if group.prompt.kind in ("plain", "replay")]


def _checked(limit: int) -> int:
    if limit < 0:
        raise ValueError(f"a cap of {limit} is no number of prompts; use 0 or more")
    return limit


def _share(key: str, fraction: float, num_new: int) -> int:
    if not 0 <= fraction < math.inf:
        raise ValueError(f"{key}={fraction} is no share of the new questions; use 0 or a positive number")
    if num_new < 1:
        raise ValueError(f"rollout.questions_per_step={num_new} gives {key} nothing to be a share of; use at least 1")
    # The fraction as it is written: in binary 0.29 * 100 is below 29, and its floor would be 28.
    count = math.floor(fractions.Fraction(str(float(fraction))) * num_new)
    if fraction > 0 and count == 0:
        raise ValueError(
            f"{key}={fraction} of rollout.questions_per_step={num_new} gives no prompt at all; use 0 to switch it off, "
            f"or at least {1 / num_new:g}"
        )
    return count
