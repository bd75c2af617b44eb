"""The groups of each mini-batch. Host only.

Shape suffixes: P groups, G rollouts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zppo_jax.keys import RandomStream
from zppo_jax.types import Outcome


def split(num_groups: int, num_minibatches: int, seed: int, step: int, epoch: int) -> list[np.ndarray]:
    """The group indices of each mini-batch: a permutation from (seed, step, epoch) in parts of nearly equal size."""
    order_P = RandomStream(seed, step, "minibatches").order(num_groups, epoch)
    return [part for part in np.array_split(order_P, num_minibatches) if len(part)]


def with_gradient(groups: Sequence[int], weights_PG: np.ndarray) -> list[int]:
    """The groups in which any response has a nonzero weight."""
    return [index for index in groups if np.any(weights_PG[index] != 0.0)]


def computed(
    groups: Sequence[int], weights_PG: np.ndarray, outcomes: Sequence[Outcome], weighted_only: bool
) -> list[int]:
    """The groups that an update computes: all decided ones, or those with weight if the objective is `weighted_only`.

    With group-relative credit all weights of a group are exactly zero if all its responses are right or all are wrong,
    and so is the gradient: such groups count among the tokens of the mean and are not computed. Most groups are of this
    kind, so this saves most of the update's time.
    """
    if weighted_only:
        return with_gradient(groups, weights_PG)
    return [index for index in groups if outcomes[index].decided]


def num_tokens(outcomes: Sequence[Outcome]) -> int:
    """The number of sampled tokens of the decided groups, which the loss is divided by. Undecided groups are excluded:
    not even a zero gradient is known for them."""
    return sum(outcome.num_tokens for outcome in outcomes if outcome.decided)
