"""Gated full attention of Qwen3.5: grouped-query, q/k norm before partial rotary, sigmoid output gate.

Shape suffixes: B rows, T query tokens, Q tokens of a block of queries, S key slots, D model, N query heads,
K key-value heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from zppo_jax.models.qwen3_5.config import TextConfig
from zppo_jax.models.qwen3_5.layers import Linear, RMSNorm, rotate
from zppo_jax.models.qwen3_5.tree import Tree
from zppo_jax.parallel import constrain

QUERY_BLOCK = 512
"""The number of queries processed at once: scores take N x 512 x S numbers instead of N x T x S, and are recomputed in
the backward pass."""

Visible = Callable[[jax.Array | int, int], jax.Array]
"""(first query, number of queries) -> mask [B, Q, S] of the slots that each of these queries sees."""


def _attend(q_BQNH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, mask_BQS: jax.Array) -> jax.Array:
    """Attends with all queries of a key head one after the other, so that both products are plain batched matrix
    products; otherwise XLA transposes the scores, the largest array here, twice."""
    num_rows, num_queries, num_heads, head_dim = q_BQNH.shape
    num_kv, num_slots = k_BKSH.shape[1:3]
    shared = num_heads // num_kv
    q = q_BQNH.reshape(num_rows, num_queries, num_kv, shared, head_dim).transpose(0, 2, 3, 1, 4)
    q = q.reshape(num_rows, num_kv, shared * num_queries, head_dim)
    scores = jnp.einsum("bkqh,bksh->bkqs", q, k_BKSH, preferred_element_type=jnp.float32) * head_dim**-0.5
    scores = scores.reshape(num_rows, num_kv, shared, num_queries, num_slots)
    scores = jnp.where(mask_BQS[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype).reshape(num_rows, num_kv, -1, num_slots)
    out = jnp.matmul(weights, v_BKSH).reshape(num_rows, num_kv, shared, num_queries, head_dim)
    return out.transpose(0, 3, 1, 2, 4).reshape(q_BQNH.shape)


def attend(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, visible: Visible) -> jax.Array:
    """Softmax attention in float32 over the slots that each query sees; query head i reads key head i // (N / K).

    A query that sees no slot (a pad) attends uniformly to all; its output is finite and ignored.
    """
    num_tokens = q_BTNH.shape[1]
    k_BKSH, v_BKSH = jnp.swapaxes(k_BSKH, 1, 2), jnp.swapaxes(v_BSKH, 1, 2)
    if num_tokens <= QUERY_BLOCK:
        return _attend(q_BTNH, k_BKSH, v_BKSH, visible(0, num_tokens))
    num_blocks = -(-num_tokens // QUERY_BLOCK)
    padded = jnp.pad(q_BTNH, [(0, 0), (0, num_blocks * QUERY_BLOCK - num_tokens), (0, 0), (0, 0)])

    @jax.checkpoint
    def block(start: jax.Array) -> jax.Array:
        q_BQNH = jax.lax.dynamic_slice_in_dim(padded, start, QUERY_BLOCK, axis=1)
        return _attend(q_BQNH, k_BKSH, v_BKSH, visible(start, QUERY_BLOCK))

    blocks = jax.lax.map(block, jnp.arange(num_blocks) * QUERY_BLOCK)
    return jnp.moveaxis(blocks, 0, 1).reshape(padded.shape)[:, :num_tokens]


def causal(past_BS: jax.Array, mask_BT: jax.Array) -> Visible:
    """The slots that a query sees: those up to its own that hold real tokens (`past_BS`, `mask_BT`)."""
    num_past, num_tokens = past_BS.shape[1], mask_BT.shape[1]
    valid_BS = jnp.concatenate([past_BS, mask_BT], axis=1)
    order_S = jnp.concatenate([jnp.full(num_past, -1), jnp.arange(num_tokens)])

    def visible(start: jax.Array | int, length: int) -> jax.Array:
        order_Q = start + jnp.arange(length)
        return valid_BS[:, None, :] & (order_S <= order_Q[:, None])

    return visible


def causal_in_tree(mask_BT: jax.Array, tree: Tree) -> Visible:
    """The slots that a query sees in rows of trees: only those of its branch, or of its trunk."""
    in_order = causal(mask_BT[:, :0], mask_BT)
    beyond = [(0, 0), (0, -mask_BT.shape[1] % QUERY_BLOCK)]  # the last block of queries may extend beyond the row
    own_BT, trunk_BT = (jnp.pad(x, beyond) for x in (tree.segment_BT, tree.trunk_BT))

    def visible(start: jax.Array | int, length: int) -> jax.Array:
        own_BQ1, trunk_BQ1 = (
            jax.lax.dynamic_slice_in_dim(x, start, length, axis=1)[..., None] for x in (own_BT, trunk_BT)
        )
        key_B1S = tree.segment_BT[:, None, :]
        return in_order(start, length) & ((own_BQ1 == key_B1S) | (trunk_BQ1 == key_B1S))

    return visible


class GatedAttention(nnx.Module):
    """The mixer of every `full_attention_interval`-th layer."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        size, head = config.hidden_size, config.head_dim
        num_heads, num_kv = config.num_attention_heads, config.num_key_value_heads
        self.q = Linear(rngs, size, (num_heads, 2 * head), ("embed", "heads", None))
        self.k = Linear(rngs, size, (num_kv, head), ("embed", "kv_heads", None))
        self.v = Linear(rngs, size, (num_kv, head), ("embed", "kv_heads", None))
        self.o = Linear(rngs, (num_heads, head), size, ("heads", None, "embed"))
        self.q_norm = RMSNorm(rngs, head, config.rms_norm_eps)
        self.k_norm = RMSNorm(rngs, head, config.rms_norm_eps)

    def project(self, x_BTD: jax.Array, rope: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        """Computes queries, keys (both normalised and rotated), values and the output gate.

        q's projection holds [q | gate] for each head in turn, not all queries and then all gates.
        """
        q, gate = jnp.split(constrain(self.q(x_BTD), "batch", None, "heads", None), 2, axis=-1)
        k = constrain(self.k(x_BTD), "batch", None, "kv_heads", None)
        v = constrain(self.v(x_BTD), "batch", None, "kv_heads", None)
        return rotate(self.q_norm(q), *rope), rotate(self.k_norm(k), *rope), v, gate

    def output(self, attended_BTNH: jax.Array, gate_BTNH: jax.Array) -> jax.Array:
        return self.o(attended_BTNH * jax.nn.sigmoid(gate_BTNH))

    def __call__(
        self,
        x_BTD: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        visible: Visible,
        past: tuple[jax.Array, ...],
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Processes a sequence after `past` keys and values [B, S - T, K, H], if any; also returns its k and v."""
        q, k, v, gate = self.project(x_BTD, rope)
        keys, values = (jnp.concatenate(pair, axis=1) for pair in zip(past, (k, v), strict=True)) if past else (k, v)
        return self.output(attend(q, keys, values, visible), gate), (k, v)
