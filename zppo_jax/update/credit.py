"""Credit: the weight of each response of a step, as pure functions of the outcomes, chosen by the method.

Shape suffixes: P groups, G rollouts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from zppo_jax.config import Config
from zppo_jax.types import Outcome
from zppo_jax.update.advantages import group_advantages


class Credit(Protocol):
    """Gives the weights of all responses of a step."""

    def __call__(self, outcomes: Sequence[Outcome], minibatches: Sequence[np.ndarray]) -> np.ndarray:
        """Computes weights, float32 [P, G]; zero for a response that is not learned from.

        `minibatches` are the group indices of each mini-batch of an epoch.
        """
        ...


@dataclasses.dataclass(frozen=True)
class GroupRelative:
    """Advantages within each group, normalised over the whole batch or over each mini-batch (`scope`; Eqs 2 and 3).

    A group with an undecided rollout has no baseline: its advantages are zero, and the statistics exclude it.
    """

    normalisation: str
    scope: str
    eps: float

    @classmethod
    def of(cls, config: Config) -> GroupRelative:
        """Makes the credit from the keys `advantage.*`."""
        return cls(config.advantage.normalisation, config.advantage.scope, config.advantage.eps)

    def __call__(self, outcomes: Sequence[Outcome], minibatches: Sequence[np.ndarray]) -> np.ndarray:
        rewards_PG = np.stack([outcome.rewards_G for outcome in outcomes])
        decided_P = np.asarray([outcome.decided for outcome in outcomes], bool)
        weights_PG = np.zeros_like(rewards_PG)
        for part in minibatches if self.scope == "minibatch" else [np.arange(len(outcomes))]:
            known = part[decided_P[part]]
            weights_PG[known] = group_advantages(rewards_PG[known], self.normalisation, self.eps)
        return weights_PG


CREDITS: dict[str, Callable[[Config], Credit]] = {"group_relative": GroupRelative.of}
"""Makers of credits from a configuration, by the name in a method's row."""
