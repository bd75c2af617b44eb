"""Which groups a mini-batch takes, and their advantages. Host only.

Shape suffixes: P groups, G rollouts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zppo_jax.types import Group, Outcome
from zppo_jax.update.advantages import group_advantages


def split(num_groups: int, num_minibatches: int, seed: int, step: int, epoch: int) -> list[np.ndarray]:
    """Group indices of each mini-batch: a permutation from (seed, step, epoch) in parts whose sizes differ by one."""
    rng = np.random.default_rng([seed, step, epoch, 0x5B])
    return [part for part in np.array_split(rng.permutation(num_groups), num_minibatches) if len(part)]


def advantages(
    outcomes: Sequence[Outcome | Group], parts: Sequence[np.ndarray], normalisation: str, scope: str, eps: float
) -> np.ndarray:
    """Advantages [P, G] with the statistics of the whole rollout batch, or of each mini-batch (`scope`).

    A group with an undecided rollout has no baseline: its advantages are zero, and it enters no statistics.
    """
    rewards_PG = np.stack([outcome.rewards_G for outcome in outcomes])
    decided_P = np.asarray([outcome.decided for outcome in outcomes], bool)
    out = np.zeros_like(rewards_PG)
    for part in parts if scope == "minibatch" else [np.arange(len(outcomes))]:
        known = part[decided_P[part]]
        out[known] = group_advantages(rewards_PG[known], normalisation, eps)
    return out


def with_gradient(groups: Sequence[int], advantages_PG: np.ndarray) -> list[int]:
    """Those of the groups whose advantages have any spread.

    Where all are right or all are wrong, advantages are exactly zero and so is the gradient: such groups count among
    the tokens of the mean and are not computed. Most groups are of this kind, so this is most of the update's time.
    """
    return [index for index in groups if np.any(advantages_PG[index] != 0.0)]


def num_tokens(outcomes: Sequence[Outcome | Group]) -> int:
    """Sampled tokens of the decided groups: what the loss is divided by. Of the others nothing is known, not even that
    their gradient is zero."""
    return sum(outcome.num_tokens for outcome in outcomes if outcome.decided)
