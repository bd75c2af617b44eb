"""Causal depthwise convolution with a carried context, as Qwen3.5's linear-attention layers use it.

Shape suffixes: B rows, T tokens, J context (taps - 1); the channels are any number of trailing axes.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp


@jax.custom_vjp
def causal_conv(x_BT: jax.Array, kernel: jax.Array, context_BJ: jax.Array) -> jax.Array:
    """Depthwise convolution over time in which token t sees the inputs t-J .. t.

    `x_BT` is [B, T, *channels], `kernel` [J + 1, *channels]; `context_BJ` [B, J, *channels] holds the raw inputs before
    the first token (zeros at the start of a sequence), so a long sequence may be fed in pieces. Taps are summed in
    float32 (rounding after each tap would raise a bfloat16 model's error by half). Returns the shape and dtype of
    `x_BT`.
    """
    return _forward(x_BT, kernel, context_BJ)[0]


def _taps(x_BT: jax.Array, context_BJ: jax.Array, num_taps: int) -> list[jax.Array]:
    """The inputs of each tap, [B, T, *channels] each; those of the last tap are the tokens themselves."""
    padded = jnp.concatenate([context_BJ.astype(x_BT.dtype), x_BT], axis=1)
    return [padded[:, tap : tap + x_BT.shape[1]] for tap in range(num_taps)]


def _forward(x_BT, kernel, context_BJ):
    taps, weights = _taps(x_BT, context_BJ, len(kernel)), kernel.astype(jnp.float32)
    weighted = [tap * weight for tap, weight in zip(taps, weights, strict=True)]
    return functools.reduce(jnp.add, weighted).astype(x_BT.dtype), (x_BT, kernel, context_BJ)


def _backward(kept, cotangent_BT):
    """The gradients. Each kernel weight's is one sum over rows of channels; by automatic transposition it would be a
    reduction in the middle of an array, eleven times slower on a CPU."""
    x_BT, kernel, context_BJ = kept
    slope, rows = cotangent_BT.astype(jnp.float32), (-1, *kernel.shape[1:])
    products = [tap * slope for tap in _taps(x_BT, context_BJ, len(kernel))]
    kernel_gradient = jnp.stack([jnp.sum(product.reshape(rows), axis=0) for product in products])
    last = len(kernel) - 1
    room, length = [(0, 0)] * (x_BT.ndim - 2), last + x_BT.shape[1]
    around = jnp.pad(slope, [(0, 0), (last, last), *room])
    seen = [around[:, last - tap : last - tap + length] * weight for tap, weight in enumerate(kernel)]
    padded = functools.reduce(jnp.add, seen)
    context_gradient, x_gradient = padded[:, :last], padded[:, last:]
    return (
        x_gradient.astype(x_BT.dtype),
        kernel_gradient.astype(kernel.dtype),
        context_gradient.astype(context_BJ.dtype),
    )


causal_conv.defvjp(_forward, _backward)


def next_context(x_BT: jax.Array, context_BJ: jax.Array, end_B: jax.Array) -> jax.Array:
    """The context after each row's last valid token: inputs end-J .. end-1, with the old context before them.

    `end_B` is the index one past the last valid token (0 for a row without one). Gathering at the true end keeps
    right padding out of the state (transformers gets this wrong in generation; left padding is exact as well,
    because masked inputs are zero).
    """
    padded = jnp.concatenate([context_BJ.astype(x_BT.dtype), x_BT], axis=1)
    index_BJ = end_B[:, None] + jnp.arange(context_BJ.shape[1])
    return jnp.take_along_axis(padded, index_BJ.reshape(*index_BJ.shape, *(1,) * (x_BT.ndim - 2)), axis=1)


def conv_step(x_B: jax.Array, kernel: jax.Array, context_BJ: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Processes one token [B, *channels] after `context_BJ`: (its output as in `causal_conv`, the context after it)."""
    seen = [context_BJ[:, tap] for tap in range(context_BJ.shape[1])] + [x_B]
    weighted = [tap.astype(jnp.float32) * weight for tap, weight in zip(seen, kernel.astype(jnp.float32), strict=True)]
    after_BJ = jnp.concatenate([context_BJ[:, 1:], x_B[:, None].astype(context_BJ.dtype)], axis=1)
    return functools.reduce(jnp.add, weighted).astype(x_B.dtype), after_BJ
