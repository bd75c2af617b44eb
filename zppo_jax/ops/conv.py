"""Causal depthwise convolution with a carried context, as Qwen3.5's linear-attention layers use it.

Shape suffixes: B rows, T tokens, C channels, K kernel taps.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def causal_conv(x_BTC: jax.Array, kernel_KC: jax.Array, context_BJC: jax.Array) -> jax.Array:
    """Depthwise convolution over time in which token t sees the taps t-K+1 .. t.

    `context_BJC` holds the K-1 raw inputs before the first token (zeros at the start of a sequence), so a long
    sequence may be fed in pieces. Returns [B, T, C] in the dtype of `x_BTC`.
    """
    num_taps, num_tokens = kernel_KC.shape[0], x_BTC.shape[1]
    padded_BSC = jnp.concatenate([context_BJC.astype(x_BTC.dtype), x_BTC], axis=1)
    taps = [padded_BSC[:, tap : tap + num_tokens] * kernel_KC[tap] for tap in range(num_taps)]
    return sum(taps[1:], start=taps[0])


def next_context(x_BTC: jax.Array, context_BJC: jax.Array, end_B: jax.Array) -> jax.Array:
    """The context after each row's last valid token: inputs end-(K-1) .. end-1, with the old context before them.

    `end_B` is the index one past the last valid token (0 for a row without one). Gathering at the true end keeps
    right padding out of the state (transformers gets this wrong in generation; left padding is exact as well,
    because masked inputs are zero).
    """
    num_context = context_BJC.shape[1]
    padded_BSC = jnp.concatenate([context_BJC.astype(x_BTC.dtype), x_BTC], axis=1)
    index_BJ = end_B[:, None] + jnp.arange(num_context)
    return jnp.take_along_axis(padded_BSC, index_BJ[:, :, None], axis=1)
