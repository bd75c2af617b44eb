"""Causal depthwise convolution with a carried context, as Qwen3.5's linear-attention layers use it.

Shape suffixes: B rows, T tokens, J context (taps - 1); the channels are any number of trailing axes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def causal_conv(
    x_BT: jax.Array, kernel: jax.Array, context_BJ: jax.Array, segment_BT: jax.Array | None = None
) -> jax.Array:
    """Depthwise convolution over time in which token t sees the inputs t-J .. t.

    `x_BT` is [B, T, *channels], `kernel` [J + 1, *channels]; `context_BJ` [B, J, *channels] holds the raw inputs before
    the first token (zeros at the start of a sequence), so a long sequence may be fed in pieces. With `segment_BT` a
    token sees only inputs of its own segment; the context belongs to the segment of the first token. Returns the shape
    and dtype of `x_BT`.
    """
    num_taps, num_tokens = kernel.shape[0], x_BT.shape[1]
    padded = jnp.concatenate([context_BJ.astype(x_BT.dtype), x_BT], axis=1)
    taps = [padded[:, tap : tap + num_tokens] for tap in range(num_taps)]
    if segment_BT is not None:
        before = jnp.broadcast_to(segment_BT[:, :1], context_BJ.shape[:2])
        padded_segment = jnp.concatenate([before, segment_BT], axis=1)
        same = [padded_segment[:, tap : tap + num_tokens] == segment_BT for tap in range(num_taps)]
        channels = (1,) * (x_BT.ndim - 2)
        taps = [jnp.where(own.reshape(*own.shape, *channels), tap, 0) for own, tap in zip(same, taps, strict=True)]
    weighted = [tap * kernel[index] for index, tap in enumerate(taps)]
    return sum(weighted[1:], start=weighted[0])


def next_context(x_BT: jax.Array, context_BJ: jax.Array, end_B: jax.Array) -> jax.Array:
    """The context after each row's last valid token: inputs end-J .. end-1, with the old context before them.

    `end_B` is the index one past the last valid token (0 for a row without one). Gathering at the true end keeps
    right padding out of the state (transformers gets this wrong in generation; left padding is exact as well,
    because masked inputs are zero).
    """
    padded = jnp.concatenate([context_BJ.astype(x_BT.dtype), x_BT], axis=1)
    index_BJ = end_B[:, None] + jnp.arange(context_BJ.shape[1])
    return jnp.take_along_axis(padded, index_BJ.reshape(*index_BJ.shape, *(1,) * (x_BT.ndim - 2)), axis=1)
