"""What the sampler does with logits: banned ids, temperature, truncation, inverse-CDF sampling.

All settings are traced scalars, so changing them compiles nothing. Log-probabilities are always those of the
untruncated distribution at the sampling temperature: with truncated ones the importance ratio would be wrong by the
kept mass.

Shape suffixes: B rows, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from zppo_jax.ops.logprobs import scaled_logits


def settings(temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> dict[str, Any]:
    """The sampler's traced settings; temperature 0 is greedy, top_k 0 and top_p 1 switch truncation off."""
    if temperature < 0 or not 0 < top_p <= 1 or not 0 <= min_p < 1 or top_k < 0:
        raise ValueError(
            f"temperature={temperature}, top_k={top_k}, top_p={top_p}, min_p={min_p}: need temperature >= 0, "
            "top_k >= 0, 0 < top_p <= 1 and 0 <= min_p < 1"
        )
    return {
        "temperature": jnp.float32(temperature),
        "top_k": jnp.int32(top_k),
        "top_p": jnp.float32(top_p),
        "min_p": jnp.float32(min_p),
    }


def log_softmax(logits: jax.Array, temperature: jax.Array | float, banned_V: ArrayLike) -> jax.Array:
    """Log-probabilities in float32 at a temperature (0 counts as 1), banned ids at minus infinity."""
    return jax.nn.log_softmax(scaled_logits(logits, temperature, banned_V), axis=-1)


def truncate(logprobs_BV: jax.Array, top_k: jax.Array, top_p: jax.Array, min_p: jax.Array) -> jax.Array:
    """Which tokens survive top-k, then top-p, then min-p, each with transformers' conventions. Returns a mask."""
    vocab = logprobs_BV.shape[-1]
    ordered_BV = -jnp.sort(-logprobs_BV, axis=-1)
    last = jnp.where(top_k > 0, jnp.minimum(top_k, vocab), vocab) - 1
    kth_B1 = jnp.take(ordered_BV, last[None], axis=-1)
    keep_BV = logprobs_BV >= kth_B1
    # top-p works on what top-k left, renormalised; a token stays while the mass before it is below top_p.
    kept_BV = jnp.where(ordered_BV >= kth_B1, jnp.exp(ordered_BV), 0.0)
    kept_BV = kept_BV / jnp.sum(kept_BV, axis=-1, keepdims=True)
    before_BV = jnp.cumsum(kept_BV, axis=-1) - kept_BV
    is_in_BV = (before_BV < top_p) & (kept_BV > 0)
    floor_B1 = jnp.min(jnp.where(is_in_BV, ordered_BV, jnp.inf), axis=-1, keepdims=True)
    keep_BV &= (logprobs_BV >= floor_B1) | (top_p >= 1.0)
    best_B1 = ordered_BV[:, :1]
    return keep_BV & (logprobs_BV >= best_B1 + jnp.log(min_p))


def sample(logprobs_BV: jax.Array, uniform_B: jax.Array, sampling: dict[str, Any]) -> jax.Array:
    """One token a row, int32 [B]: the argmax when greedy, else the inverse CDF of what survives, at `uniform_B`."""
    active = (sampling["top_k"] > 0) | (sampling["top_p"] < 1.0) | (sampling["min_p"] > 0.0)
    keep_BV = jax.lax.cond(
        active,
        lambda: truncate(logprobs_BV, sampling["top_k"], sampling["top_p"], sampling["min_p"]),
        lambda: jnp.ones(logprobs_BV.shape, bool),
    )
    weight_BV = jnp.where(keep_BV, jnp.exp(logprobs_BV), 0.0)
    # A parallel prefix sum rounds differently at each place, so it may rise where the weight is 0 (2e-5 of the draws at
    # 248k tokens): banned and truncated tokens are taken out of it.
    cumulative_BV = jnp.where(weight_BV > 0.0, jnp.cumsum(weight_BV, axis=-1), 0.0)
    total_B = jnp.max(cumulative_BV, axis=-1)
    # Strictly below the total even when rounding says otherwise, so that some token always exceeds the target.
    target_B = jnp.minimum(uniform_B * total_B, jnp.nextafter(total_B, 0.0))
    drawn_B = jnp.argmax(cumulative_BV > target_B[:, None], axis=-1)
    return jnp.where(sampling["temperature"] == 0.0, jnp.argmax(logprobs_BV, axis=-1), drawn_B).astype(jnp.int32)
