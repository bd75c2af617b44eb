"""The clipped policy loss at token level (Eq 6 of arXiv:2606.18216; clip-higher and token aggregation as in DAPO).

Shape suffixes: B rollouts, T response tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


class Sum(NamedTuple):
    """A metric that is a sum over tokens, divided once per mini-batch.

    `over`: "all" tokens of the mini-batch, including those of groups that are not computed, which add 0 (an objective
    that is `weighted_only`); or only the "computed" ones.
    """

    name: str
    over: Literal["all", "computed"] = "all"


SUMS = (
    Sum("loss"),
    Sum("clip_fraction"),
    Sum("dual_clip_fraction"),
    Sum("ratio", "computed"),
    Sum("kl", "computed"),
    Sum("log_ratio_abs", "computed"),
)
"""The sums that `surrogate_sums` computes."""


def surrogate_sums(
    logprobs_BT: jax.Array,
    old_logprobs_BT: jax.Array,
    advantages_BT: jax.Array,
    mask_BT: jax.Array,
    clip_low: float,
    clip_high: float,
    dual_clip: float,
) -> dict[str, jax.Array]:
    """Computes sums over the unmasked tokens, under the names of SUMS.

    L = max(-A r, -A clip(r, 1 - low, 1 + high)); for A < 0 also at most -A * dual_clip, which bounds the loss of a
    token whose probability has grown far too much.
    """
    is_real = mask_BT.astype(bool)
    # Masked positions may hold infinities: these are replaced before any arithmetic, so that their gradient is zero.
    logprobs = jnp.where(is_real, logprobs_BT, 0.0)
    old = jnp.where(is_real, old_logprobs_BT, 0.0)
    advantages = jnp.where(is_real, advantages_BT, 0.0)
    # Beyond e^20 every branch of the loss is flat; without the bound exp overflows, and 0 * inf is not a number.
    log_ratio = jnp.minimum(logprobs - old, 20.0)
    ratio = jnp.exp(log_ratio)
    plain = -advantages * ratio
    clipped = -advantages * jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    loss = jnp.maximum(plain, clipped)
    ceiling = -advantages * dual_clip
    loss = jnp.where(advantages < 0, jnp.minimum(loss, ceiling), loss)
    is_dual = (advantages < 0) & (jnp.maximum(plain, clipped) > ceiling)

    def total(values: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(is_real, values, 0.0))

    return {
        "loss": total(loss),
        "clip_fraction": total(clipped > plain),
        "dual_clip_fraction": total(is_dual),
        "ratio": total(ratio),
        "kl": total(jnp.expm1(log_ratio) - log_ratio),  # ratio - 1 would round fresh rollouts' differences to 0
        "log_ratio_abs": total(jnp.abs(log_ratio)),
    }


def clipped_surrogate(
    logprobs_BT: ArrayLike,
    old_logprobs_BT: ArrayLike,
    advantages_B: ArrayLike,
    mask_BT: ArrayLike,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float = 10.0,
) -> tuple[jax.Array, dict[str, Any]]:
    """The loss to minimise, sum(mask * l) / sum(mask), and its metrics; 0 for an empty mask.

    Masked positions give exactly zero gradient, whatever they hold.
    """
    advantages_BT = jnp.broadcast_to(jnp.asarray(advantages_B)[:, None], jnp.shape(mask_BT))
    arrays = [jnp.asarray(array) for array in (logprobs_BT, old_logprobs_BT, advantages_BT, mask_BT)]
    sums = surrogate_sums(*arrays, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    num_tokens = jnp.sum(jnp.asarray(mask_BT).astype(bool), dtype=jnp.float32)
    found = means(SUMS, sums, num_tokens, num_tokens) | {"tokens": num_tokens}
    return found["loss"], found


def means(
    declared: Sequence[Sum], sums: Mapping[str, jax.Array], num_tokens: jax.Array, num_computed: jax.Array
) -> dict[str, jax.Array]:
    """Token means of sums: over all `num_tokens`, or over the `num_computed` computed ones, as each sum declares.

    A token that was not computed adds 0: only an objective that ignores tokens without weight leaves groups out.
    """
    counts = {"all": jnp.maximum(num_tokens, 1.0), "computed": jnp.maximum(num_computed, 1.0)}
    return {one.name: sums[one.name] / counts[one.over] for one in declared}
