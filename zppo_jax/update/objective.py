"""The objectives that an update minimises, as rows of one table, and the clipped policy loss of the paper (Eq 6).

An objective declares the sums over tokens that it computes, and computes them from the outputs of the student, and of a
reference model if it asks for one, on a micro-batch. The learner packs, accumulates, divides and updates; it contains
no loss.

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
    """A model's output on a micro-batch: the hidden state of every slot, and the values that make it a distribution.

    The distribution is the sampler's: at its temperature, without the tokens of `banned_V`.
    """

    hidden_BTD: jax.Array
    head_VD: jax.Array
    temperature: float
    banned_V: jax.Array

    def logprobs(self, target_BT: jax.Array) -> jax.Array:
        """Log-probabilities [B, T] of the targets; only those of counted slots are meaningful."""
        return target_logprobs(self.hidden_BTD, self.head_VD, target_BT, self.temperature, self.banned_V)


class Objective(Protocol):
    """A loss over tokens. Hashable: it is a static argument of the compiled gradient.

    Attributes:
      sums: the sums that it computes; "loss" is one of them.
      mismatch: the metrics of the mismatch between student and sampler in the first update of a step, with their
        names among `sums`; {} if the objective does not use the sampler's log-probabilities.
      needs_reference: whether it is called with a reference model.
      weighted_only: whether a response with zero weight adds exactly 0 to the loss and to every sum over "all" tokens.
        Groups without any weight are then not computed; otherwise every decided group is.
    """

    sums: ClassVar[tuple[Sum, ...]]
    mismatch: ClassVar[Mapping[str, str]]
    needs_reference: ClassVar[bool]
    weighted_only: ClassVar[bool]

    def __call__(
        self, student: ModelOutput, reference: ModelOutput | None, micro: Mapping[str, Any]
    ) -> dict[str, jax.Array]:
        """Computes the sums over the counted slots of a micro-batch, scalars by name.

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
    weighted_only: ClassVar[bool] = True

    @classmethod
    def of(cls, config: Config) -> Clipped:
        """Makes the objective with the limits of `update.clip_*`."""
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
"""Makers of objectives from a configuration, by the name in a method's row."""
