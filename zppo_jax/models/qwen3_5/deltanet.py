"""Gated DeltaNet, Qwen3.5's linear attention: short convolution, gated delta rule, gated norm.

Shape suffixes: B rows, T tokens, D model, C conv channels, J conv context (taps - 1), N value heads,
K key dim, V value dim.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from zppo_jax.models.qwen3_5.config import TextConfig
from zppo_jax.models.qwen3_5.layers import Linear, weight
from zppo_jax.ops.conv import causal_conv, next_context
from zppo_jax.ops.gated_delta import gated_delta_chunked, gated_delta_step


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
    """The mixer of the linear layers. State per row: conv context [J, C] and recurrent state [N, K, V] (float32)."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        size, heads = config.hidden_size, config.linear_num_value_heads
        self.key_heads, self.heads = config.linear_num_key_heads, heads
        self.key_head_dim, self.value_head_dim = config.linear_key_head_dim, config.linear_value_head_dim
        self.qkv = Linear(rngs, (size, config.conv_dim), ("embed", "linear_heads"))
        self.z = Linear(rngs, (size, config.value_dim), ("embed", "linear_heads"))
        self.b = Linear(rngs, (size, heads), ("embed", None))
        self.a = Linear(rngs, (size, heads), ("embed", None))
        self.conv = weight(rngs, (config.linear_conv_kernel_dim, config.conv_dim), (None, "linear_heads"))
        self.a_log = weight(rngs, (heads,), (None,), "zeros")
        self.dt_bias = weight(rngs, (heads,), (None,), "ones")
        self.norm = GatedRMSNorm(rngs, config.linear_value_head_dim, config.rms_norm_eps)
        self.out = Linear(rngs, (config.value_dim, size), ("linear_heads", "embed"))

    def _heads(self, qkv_BTC: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Split the activated convolution output in normalised q, k and v of all value heads, float32."""
        rows, tokens = qkv_BTC.shape[:2]
        key_dim = self.key_heads * self.key_head_dim
        q, k, v = jnp.split(qkv_BTC.astype(jnp.float32), [key_dim, 2 * key_dim], axis=-1)
        repeats = self.heads // self.key_heads
        q = l2_normalise(q.reshape(rows, tokens, self.key_heads, self.key_head_dim)) * self.key_head_dim**-0.5
        k = l2_normalise(k.reshape(rows, tokens, self.key_heads, self.key_head_dim))
        v = v.reshape(rows, tokens, self.heads, self.value_head_dim)
        return jnp.repeat(q, repeats, axis=2), jnp.repeat(k, repeats, axis=2), v

    def _gates(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Log decay g <= 0 and write strength beta, both float32 [B, T, N]."""
        beta = jax.nn.sigmoid(self.b(x_BTD)).astype(jnp.float32)
        rate = jax.nn.softplus(self.a(x_BTD).astype(jnp.float32) + self.dt_bias[...].astype(jnp.float32))
        return -jnp.exp(self.a_log[...].astype(jnp.float32)) * rate, beta

    def _output(self, o_BTNV: jax.Array, x_BTD: jax.Array) -> jax.Array:
        o = self.norm(o_BTNV.astype(x_BTD.dtype), self.z(x_BTD).reshape(o_BTNV.shape))
        return self.out(o.reshape(*o.shape[:2], -1))

    def __call__(
        self, x_BTD: jax.Array, mask_BT: jax.Array, end_B: jax.Array, state: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """A whole sequence from `state` = (context_BJC, recurrent_BNKV). Pads before and after a row's tokens are
        neutral: their input is zeroed before the convolution, and g = beta = 0 after it (three pads behind the text
        still see it through the convolution). Pads between tokens, or before those of a continued row, are not."""
        context_BJC, recurrent_BNKV = state
        valid_BT1 = mask_BT[..., None]
        qkv_BTC = self.qkv(jnp.where(valid_BT1, x_BTD, 0))
        mixed_BTC = jax.nn.silu(causal_conv(qkv_BTC, self.conv[...], context_BJC))
        q, k, v = self._heads(jnp.where(valid_BT1, mixed_BTC, 0))
        g, beta = (jnp.where(valid_BT1, gate, 0.0) for gate in self._gates(x_BTD))
        o_BTNV, recurrent_BNKV = gated_delta_chunked(q, k, v, g, beta, recurrent_BNKV)
        return self._output(o_BTNV, x_BTD), (next_context(qkv_BTC, context_BJC, end_B), recurrent_BNKV)

    def step(
        self, x_B1D: jax.Array, state: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """One token: the recurrence itself."""
        context_BJC, recurrent_BNKV = state
        qkv_B1C = self.qkv(x_B1D)
        mixed_B1C = jax.nn.silu(causal_conv(qkv_B1C, self.conv[...], context_BJC))
        q, k, v = self._heads(mixed_B1C)
        g, beta = self._gates(x_B1D)
        o_BNV, recurrent_BNKV = gated_delta_step(q[:, 0], k[:, 0], v[:, 0], g[:, 0], beta[:, 0], recurrent_BNKV)
        context_BJC = jnp.concatenate([context_BJC[:, 1:], qkv_B1C.astype(context_BJC.dtype)], axis=1)
        return self._output(o_BNV[:, None], x_B1D), (context_BJC, recurrent_BNKV)
