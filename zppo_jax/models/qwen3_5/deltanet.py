"""Gated DeltaNet, Qwen3.5's linear attention: short convolution, gated delta rule, gated norm.

q, k and v lie together by key head: channel block h holds q_h, k_h and the v of the value heads that read key head h.
So one product makes all three, and cutting the axis of key heads over devices cuts nothing else.

Shape suffixes: B rows, T tokens, D model, G key heads, W channels of a key head (q, k and its v), J conv context
(taps - 1), N value heads, K key dim, V value dim.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from zppo_jax.models.qwen3_5.config import TextConfig
from zppo_jax.models.qwen3_5.layers import Linear, weight
from zppo_jax.ops.conv import causal_conv, next_context
from zppo_jax.ops.gated_delta import gated_delta_chunked, gated_delta_step
from zppo_jax.parallel import constrain


def l2_normalise(x: jax.Array) -> jax.Array:
    """x / |x| over the last axis, with a gradient of zero (not 1000) at all-zero rows.

    Pads are zero after the convolution; there d/dx rsqrt(x.x + 1e-6) = 1e3 would amplify whatever gradient reaches
    them (MaxText met exploding gradients under left padding). Real rows are untouched by the guard.
    """
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    is_zero = squared == 0.0
    return jnp.where(is_zero, 0.0, x * jax.lax.rsqrt(jnp.where(is_zero, 1.0, squared) + 1e-6))


class GatedRMSNorm(nnx.Module):
    """w * rms(o) * silu(z), per head; the weight is not zero-centred and the norm comes before the gate."""

    def __init__(self, rngs: nnx.Rngs, size: int, eps: float):
        self.weight = weight(rngs, (size,), (None,), "ones")
        self.eps = eps

    def __call__(self, o: jax.Array, z: jax.Array) -> jax.Array:
        y = o.astype(jnp.float32)
        y = (y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)).astype(o.dtype)
        return (self.weight[...] * y * jax.nn.silu(z.astype(jnp.float32))).astype(o.dtype)


class GatedDeltaNet(nnx.Module):
    """The mixer of the linear layers. State per row: conv context [J, G, W] and recurrent state [N, K, V] (float32)."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        size, groups, heads = config.hidden_size, config.linear_num_key_heads, config.linear_num_value_heads
        self.key_dim, self.value_dim, self.heads = config.linear_key_head_dim, config.linear_value_head_dim, heads
        channels = (groups, config.conv_dim // groups)
        self.qkv = Linear(rngs, size, channels, ("embed", "linear_heads", None))
        self.z = Linear(rngs, size, (heads, self.value_dim), ("embed", "linear_heads", None))
        self.b = Linear(rngs, size, heads, ("embed", "linear_heads"))
        self.a = Linear(rngs, size, heads, ("embed", "linear_heads"))
        self.conv = weight(rngs, (config.linear_conv_kernel_dim, *channels), (None, "linear_heads", None))
        self.a_log = weight(rngs, (heads,), ("linear_heads",), "zeros")
        self.dt_bias = weight(rngs, (heads,), ("linear_heads",), "ones")
        self.norm = GatedRMSNorm(rngs, self.value_dim, config.rms_norm_eps)
        self.out = Linear(rngs, (heads, self.value_dim), size, ("linear_heads", None, "embed"))

    def _heads(self, qkv_BTGW: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Split the activated convolution output in normalised q, k and v of all value heads, float32."""
        q, k, v = jnp.split(qkv_BTGW.astype(jnp.float32), [self.key_dim, 2 * self.key_dim], axis=-1)
        repeats = self.heads // q.shape[2]
        q = jnp.repeat(l2_normalise(q) * self.key_dim**-0.5, repeats, axis=2)
        k = jnp.repeat(l2_normalise(k), repeats, axis=2)
        return q, k, v.reshape(*v.shape[:2], self.heads, self.value_dim)

    def _gates(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Log decay g <= 0 and write strength beta, both float32 [B, T, N]."""
        beta = jax.nn.sigmoid(self.b(x_BTD)).astype(jnp.float32)
        rate = jax.nn.softplus(self.a(x_BTD).astype(jnp.float32) + self.dt_bias[...].astype(jnp.float32))
        return -jnp.exp(self.a_log[...].astype(jnp.float32)) * rate, beta

    def _output(self, o_BTNV: jax.Array, x_BTD: jax.Array) -> jax.Array:
        return self.out(self.norm(o_BTNV.astype(x_BTD.dtype), self.z(x_BTD)))

    def __call__(
        self,
        x_BTD: jax.Array,
        mask_BT: jax.Array,
        segment_BT: jax.Array | None,
        end_B: jax.Array,
        state: tuple[jax.Array, jax.Array],
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """A whole sequence from `state` = (context_BJGW, recurrent_BNKV). Pads before and after a row's tokens are
        neutral: their input is zeroed before the convolution, and g = beta = 0 after it (three pads behind the text
        still see it through the convolution). Pads between tokens, or before those of a continued row, are not.

        With `segment_BT`, every segment starts from nothing, but the first, which continues `state`.
        """
        context_BJGW, recurrent_BNKV = state
        qkv_BTGW = constrain(self.qkv(jnp.where(mask_BT[..., None], x_BTD, 0)), "batch", None, "linear_heads", None)
        mixed_BTGW = jax.nn.silu(causal_conv(qkv_BTGW, self.conv[...], context_BJGW, segment_BT))
        q, k, v = self._heads(jnp.where(mask_BT[..., None, None], mixed_BTGW, 0))
        g, beta = (jnp.where(mask_BT[..., None], gate, 0.0) for gate in self._gates(x_BTD))
        o_BTNV, recurrent_BNKV = gated_delta_chunked(q, k, v, g, beta, recurrent_BNKV, segment_BT)
        return self._output(o_BTNV, x_BTD), (next_context(qkv_BTGW, context_BJGW, end_B), recurrent_BNKV)

    def step(
        self, x_B1D: jax.Array, state: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """One token: the recurrence itself, in float32; the state keeps the dtype that it came in."""
        context_BJGW, recurrent_BNKV = state
        qkv_B1GW = constrain(self.qkv(x_B1D), "batch", None, "linear_heads", None)
        mixed_B1GW = jax.nn.silu(causal_conv(qkv_B1GW, self.conv[...], context_BJGW))
        q, k, v = self._heads(mixed_B1GW)
        g, beta = self._gates(x_B1D)
        before_BNKV = recurrent_BNKV.astype(jnp.float32)
        o_BNV, after_BNKV = gated_delta_step(q[:, 0], k[:, 0], v[:, 0], g[:, 0], beta[:, 0], before_BNKV)
        context_BJGW = jnp.concatenate([context_BJGW[:, 1:], qkv_B1GW.astype(context_BJGW.dtype)], axis=1)
        return self._output(o_BNV[:, None], x_B1D), (context_BJGW, after_BNKV.astype(recurrent_BNKV.dtype))
