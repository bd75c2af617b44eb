"""What an update minimises: objectives as rows of one table, and the clipped policy loss of the paper (Eq 6).

An objective declares the sums over tokens that it computes, and computes them from what the student, and where it asks
for one a reference model, make of a micro-batch. The learner packs, accumulates, divides and updates, and
knows no loss.

Shape suffixes: B rows, T slots of a row, D model, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import jax

from zppo_jax.config import Config
from zppo_jax.ops.logprobs import target_logprobs
from zppo_jax.update import losses
from zppo_jax.update.losses import Sum


class ModelOutput(NamedTuple):
    """What a model makes of a micro-batch: the hidden state of every slot, and what turns it into a distribution.

    The distribution is the sampler's own: at its temperature, without the tokens of `banned_V`.
    """

    hidden_BTD: jax.Array
    head_VD: jax.Array
    temperature: float
    banned_V: jax.Array

    def logprobs(self, target_BT: jax.Array) -> jax.Array:
        """Log-probabilities [B, T] of the targets; of use where a slot is counted."""
        return target_logprobs(self.hidden_BTD, self.head_VD, target_BT, self.temperature, self.banned_V)


class Objective(Protocol):
    """A loss over tokens. Hashable: it is a static argument of the compiled gradient.

    Attributes:
      sums: what it computes; "loss" is one of them.
      mismatch: metrics that say how far the student of the first update of a step lies from the sampler, under the
        names that they have among `sums`; {} where the objective does not see the sampler's log-probabilities.
      needs_reference: whether it is called with a reference model.
    """

    sums: ClassVar[tuple[Sum, ...]]
    mismatch: ClassVar[Mapping[str, str]]
    needs_reference: ClassVar[bool]

    def __call__(
        self, student: ModelOutput, reference: ModelOutput | None, micro: Mapping[str, Any]
    ) -> dict[str, jax.Array]:
        """The sums over the counted slots of a micro-batch, scalars by name.

        `micro` has target_BT (the id that a slot predicts), old_logprobs_BT (the sampler's), weights_BT (the credit of
        the response) and counted_BT (whether the slot predicts a sampled token).
        """
        ...


@dataclasses.dataclass(frozen=True)
class Clipped:
    """The clipped surrogate at token level (Eq 6; clip-higher as in DAPO) with a dual clip."""

    clip_low: float
    clip_high: float
    dual_clip: float

    sums: ClassVar[tuple[Sum, ...]] = losses.SUMS
    mismatch: ClassVar[Mapping[str, str]] = {"mismatch_kl": "kl", "mismatch_abs": "log_ratio_abs"}
    needs_reference: ClassVar[bool] = False

    @classmethod
    def of(cls, config: Config) -> Clipped:
        """With the limits of `update.clip_*`."""
        return cls(config.update.clip_low, config.update.clip_high, config.update.dual_clip)

    def __call__(
        self, student: ModelOutput, reference: ModelOutput | None, micro: Mapping[str, Any]
    ) -> dict[str, jax.Array]:
        del reference
        return losses.surrogate_sums(
            student.logprobs(micro["target_BT"]),
            micro["old_logprobs_BT"],
            micro["weights_BT"],
            micro["counted_BT"],
            self.clip_low,
            self.clip_high,
            self.dual_clip,
        )


OBJECTIVES: dict[str, Callable[[Config], Objective]] = {"clipped": Clipped.of}
"""Objectives by the name that a method has for one, made from a configuration."""
