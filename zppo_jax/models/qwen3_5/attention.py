"""Gated full attention of Qwen3.5: grouped-query, q/k norm before partial rotary, sigmoid output gate.

Shape suffixes: B rows, T query tokens, S key slots, D model, N query heads, K key-value heads, H head dim.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from zppo_jax.models.qwen3_5.config import TextConfig
from zppo_jax.models.qwen3_5.layers import Linear, RMSNorm, rotate


def attend(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """Softmax attention in float32 over the slots that `mask_BTS` allows; query head i reads key head i // (N / K).

    A row whose mask is empty (a padded query) attends uniformly to nothing of use; its output is finite and ignored.
    """
    num_rows, num_tokens, num_heads, head_dim = q_BTNH.shape
    num_kv = k_BSKH.shape[2]
    q = q_BTNH.reshape(num_rows, num_tokens, num_kv, num_heads // num_kv, head_dim)
    scores = jnp.einsum("btkgh,bskh->bkgts", q, k_BSKH).astype(jnp.float32) * head_dim**-0.5
    scores = jnp.where(mask_BTS[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(q_BTNH.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, v_BSKH).reshape(num_rows, num_tokens, num_heads, head_dim)


class GatedAttention(nnx.Module):
    """The mixer of every `full_attention_interval`-th layer."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        size, head = config.hidden_size, config.head_dim
        self.num_heads, self.num_kv, self.head_dim = config.num_attention_heads, config.num_key_value_heads, head
        self.q = Linear(rngs, (size, config.num_attention_heads * 2 * head), ("embed", "heads"))
        self.k = Linear(rngs, (size, config.num_key_value_heads * head), ("embed", "kv_heads"))
        self.v = Linear(rngs, (size, config.num_key_value_heads * head), ("embed", "kv_heads"))
        self.o = Linear(rngs, (config.num_attention_heads * head, size), ("heads", "embed"))
        self.q_norm = RMSNorm(rngs, head, config.rms_norm_eps)
        self.k_norm = RMSNorm(rngs, head, config.rms_norm_eps)

    def project(self, x_BTD: jax.Array, rope: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        """Queries, keys (both normalised and rotated), values and the output gate.

        q's projection holds [q | gate] for each head in turn, not all queries and then all gates.
        """
        rows, tokens = x_BTD.shape[:2]
        q, gate = jnp.split(self.q(x_BTD).reshape(rows, tokens, self.num_heads, 2 * self.head_dim), 2, axis=-1)
        k = self.k(x_BTD).reshape(rows, tokens, self.num_kv, self.head_dim)
        v = self.v(x_BTD).reshape(rows, tokens, self.num_kv, self.head_dim)
        return rotate(self.q_norm(q), *rope), rotate(self.k_norm(k), *rope), v, gate

    def output(self, attended_BTNH: jax.Array, gate_BTNH: jax.Array) -> jax.Array:
        y = attended_BTNH * jax.nn.sigmoid(gate_BTNH)
        return self.o(y.reshape(*y.shape[:2], -1))

    def __call__(
        self,
        x_BTD: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        mask_BTS: jax.Array,
        past: tuple[jax.Array, jax.Array] | None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """A whole sequence, after `past` keys and values [B, S - T, K, H] if given. Returns the new tokens' k and v."""
        q, k, v, gate = self.project(x_BTD, rope)
        keys, values = (k, v) if past is None else (jnp.concatenate([past[0], k], 1), jnp.concatenate([past[1], v], 1))
        return self.output(attend(q, keys, values, mask_BTS), gate), (k, v)

    def step(
        self,
        x_B1D: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        mask_BS: jax.Array,
        cache: tuple[jax.Array, jax.Array],
        slot: jax.Array,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """One token, written into the preallocated cache [B, S, K, H] at `slot` (the same for every row)."""
        q, k, v, gate = self.project(x_B1D, rope)
        keys = jax.lax.dynamic_update_slice_in_dim(cache[0], k.astype(cache[0].dtype), slot, axis=1)
        values = jax.lax.dynamic_update_slice_in_dim(cache[1], v.astype(cache[1].dtype), slot, axis=1)
        return self.output(attend(q, keys, values, mask_BS[:, None]), gate), (keys, values)
