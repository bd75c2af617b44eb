"""Gated DeltaNet, Qwen3.5's linear attention: short convolution, gated delta rule, gated norm.

q, k and v are grouped by key head: channel block h holds q_h, k_h and the v of the value heads that read key head h.
So one product makes all three, and sharding the axis of key heads never splits a head.

Shape suffixes: B rows, T tokens, D model, G key heads, W channels of a key head (q, k and its v), J conv context
(taps - 1), N value heads, K key dim, V value dim.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from zppo_jax.models.qwen3_5.config import TextConfig
from zppo_jax.models.qwen3_5.layers import Linear, weight
from zppo_jax.models.qwen3_5.tree import Tree
from zppo_jax.ops.conv import causal_conv, next_context
from zppo_jax.ops.gated_delta import gated_delta_chunked, gated_delta_tree
from zppo_jax.parallel import constrain


def l2_normalise(x: jax.Array) -> jax.Array:
    """x / |x| over the last axis, with a gradient of zero (not 1000) at all-zero rows.

    Pads are zero after the convolution; there d/dx rsqrt(x.x + 1e-6) = 1e3 would amplify whatever gradient reaches
    them (MaxText met exploding gradients under left padding). Real rows are untouched by the guard.
    """
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    is_zero = squared == 0.0
    return jnp.where(is_zero, 0.0, x * jax.lax.rsqrt(jnp.where(is_zero, 1.0, squared) + 1e-6))


def gated_rms_norm(o: jax.Array, z: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """w * rms(o) * silu(z), per head; the weight is not zero-centred and the norm comes before the gate."""
    y = o.astype(jnp.float32)
    y = (y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)).astype(o.dtype)
    return (weight * y * jax.nn.silu(z.astype(jnp.float32))).astype(o.dtype)


def split_heads(mixed: jax.Array, config: TextConfig) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Splits the activated convolution output [..., G, W] into normalised q and k [..., N, K] and v [..., N, V] of all
    value heads, float32."""
    key_dim, heads = config.linear_key_head_dim, config.linear_num_value_heads
    q, k, v = jnp.split(mixed.astype(jnp.float32), [key_dim, 2 * key_dim], axis=-1)
    repeats = heads // mixed.shape[-2]
    q = jnp.repeat(l2_normalise(q) * key_dim**-0.5, repeats, axis=-2)
    k = jnp.repeat(l2_normalise(k), repeats, axis=-2)
    return q, k, v.reshape(*v.shape[:-2], heads, config.linear_value_head_dim)


def gates(a: jax.Array, b: jax.Array, a_log: jax.Array, dt_bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log decay g <= 0 and write strength beta of each value head, both float32 [..., N]."""
    rate = jax.nn.softplus(a.astype(jnp.float32) + dt_bias.astype(jnp.float32))
    return -jnp.exp(a_log.astype(jnp.float32)) * rate, jax.nn.sigmoid(b).astype(jnp.float32)


class GatedRMSNorm(nnx.Module):
    """`gated_rms_norm` with its weight."""

    def __init__(self, rngs: nnx.Rngs, size: int, eps: float):
        self.weight = weight(rngs, (size,), (None,), "ones")
        self.eps = eps

    def __call__(self, o: jax.Array, z: jax.Array) -> jax.Array:
        return gated_rms_norm(o, z, self.weight[...], self.eps)


class GatedDeltaNet(nnx.Module):
    """The mixer of the linear layers. State per row: conv context [J, G, W] and recurrent state [N, K, V] (float32)."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        size, groups, heads = config.hidden_size, config.linear_num_key_heads, config.linear_num_value_heads
        self.config, value_dim = config, config.linear_value_head_dim
        channels = (groups, config.conv_dim // groups)
        self.qkv = Linear(rngs, size, channels, ("embed", "linear_heads", None))
        self.z = Linear(rngs, size, (heads, value_dim), ("embed", "linear_heads", None))
        self.b = Linear(rngs, size, heads, ("embed", "linear_heads"))
        self.a = Linear(rngs, size, heads, ("embed", "linear_heads"))
        self.conv = weight(rngs, (config.linear_conv_kernel_dim, *channels), (None, "linear_heads", None))
        self.a_log = weight(rngs, (heads,), ("linear_heads",), "zeros")
        self.dt_bias = weight(rngs, (heads,), ("linear_heads",), "ones")
        self.norm = GatedRMSNorm(rngs, value_dim, config.rms_norm_eps)
        self.out = Linear(rngs, (heads, value_dim), size, ("linear_heads", None, "embed"))

    def __call__(
        self, x_BTD: jax.Array, mask_BT: jax.Array, past: tuple[jax.Array, jax.Array, jax.Array] | Tree
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Processes a whole sequence that continues `past` = (context_BJGW, recurrent_BNKV, end_B, one past each row's
        last token), and returns its new state; or rows of trees, which have none.

        Pads before and after a row's tokens are neutral: their input is zeroed before the convolution, and g = beta = 0
        after it (three pads after the text still see it through the convolution). Pads between tokens, or before those
        of a continued row, are not neutral.
        """
        qkv_BTGW = constrain(self.qkv(jnp.where(mask_BT[..., None], x_BTD, 0)), "batch", None, "linear_heads", None)
        mixed_BTGW = jax.nn.silu(self._convolve(qkv_BTGW, past))
        q, k, v = split_heads(jnp.where(mask_BT[..., None, None], mixed_BTGW, 0), self.config)
        both = gates(self.a(x_BTD), self.b(x_BTD), self.a_log[...], self.dt_bias[...])
        g, beta = (jnp.where(mask_BT[..., None], gate, 0.0) for gate in both)
        if isinstance(past, Tree):
            o_BTNV, state = gated_delta_tree(q, k, v, g, beta, past.source_BC, past.is_trunk_BC), ()
        else:
            context_BJGW, recurrent_BNKV, end_B = past
            o_BTNV, recurrent_BNKV = gated_delta_chunked(q, k, v, g, beta, recurrent_BNKV)
            state = (next_context(qkv_BTGW, context_BJGW, end_B), recurrent_BNKV)
        return self.out(self.norm(o_BTNV.astype(x_BTD.dtype), self.z(x_BTD))), state

    def _convolve(self, qkv_BTGW: jax.Array, past: tuple[jax.Array, jax.Array, jax.Array] | Tree) -> jax.Array:
        """Applies the convolution; in rows of trees chunk by chunk, because each chunk has its own inputs before it."""
        if not isinstance(past, Tree):
            return causal_conv(qkv_BTGW, self.conv[...], past[0])
        context = past.before(qkv_BTGW)
        chunks = qkv_BTGW.reshape(len(context), -1, *qkv_BTGW.shape[2:])
        return causal_conv(chunks, self.conv[...], context).reshape(qkv_BTGW.shape)
