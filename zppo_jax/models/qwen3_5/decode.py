"""The language model one token at a time: states layer by layer, nothing stacked, nothing scanned.

A step computes with the decoding weights (decode_weights.py) what text.run_layers computes with the parameters: norms,
heads, gates and rotary tables are the same functions.

Shape suffixes: B rows, S key slots, D model, F mlp, N heads, K key-value heads, R query heads of a key head, H head
dim, G key heads of a linear layer, W channels of one (q, k and its v), X outputs of a linear layer's input product for
one, J conv context, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zppo_jax.models.qwen3_5 import deltanet, layers, text
from zppo_jax.models.qwen3_5.config import TextConfig
from zppo_jax.models.qwen3_5.decode_weights import Stacked, Weights, stacked, weights_first
from zppo_jax.models.qwen3_5.parameters import Params
from zppo_jax.ops.conv import conv_step
from zppo_jax.ops.gated_delta import gated_delta_step
from zppo_jax.parallel import constrain

States = list[list[tuple[jax.Array, ...]]]
"""Group by group and layer by layer: (conv [B, J, G, W], recurrent) of a linear layer, (keys [B, K, H, S], values
[B, K, S, H]) of a full one: in the layout of the products of one query, so that no step copies all keys or values."""


# ---------------------------------------------------------------- states


def unstack_cache(cache: text.Cache, config: TextConfig, num_new: int = 0) -> States:
    """Makes per-layer states with `num_new` more key slots; the caller keeps the mask."""

    def laid(x_BSKH: jax.Array, *order: int) -> jax.Array:
        return jnp.transpose(jnp.pad(x_BSKH, [(0, 0), (0, num_new), (0, 0), (0, 0)]), order)

    return [
        [(cache["conv"][g, i], cache["recurrent"][g, i]) for i in range(config.num_linear)]
        + [(laid(cache["k"][g], 0, 2, 3, 1), laid(cache["v"][g], 0, 2, 1, 3))]
        for g in range(config.num_groups)
    ]


def map_states(
    linear: Callable[..., Any],
    keys: Callable[..., Any],
    values: Callable[..., Any],
    config: TextConfig,
    *states: States,
) -> States:
    """Maps `linear` over the arrays of the linear layers (convolution contexts, recurrent states), `keys` and `values`
    over those of the full ones; with several states, array by array."""
    kinds = [(linear, linear)] * config.num_linear + [(keys, values)]
    return [
        [
            tuple(function(*arrays) for function, arrays in zip(kind, zip(*pairs, strict=True), strict=True))
            for kind, pairs in zip(kinds, zip(*groups, strict=True), strict=True)
        ]
        for groups in zip(*states, strict=True)
    ]


def state_axes(config: TextConfig) -> list[list[tuple[tuple[str | None, ...], ...]]]:
    """The logical names of the axes of per-layer states."""
    linear, full = (text.CACHE_AXES["conv"], text.CACHE_AXES["recurrent"]), (("batch", "kv_heads", None, None),) * 2
    return [[linear] * config.num_linear + [full] for _ in range(config.num_groups)]


# ---------------------------------------------------------------- a step


def step_layers(
    weights: Weights,
    config: TextConfig,
    x_BD: jax.Array,
    positions_B: jax.Array,
    mask_BS: jax.Array,
    states: States,
    slot: jax.Array,
) -> tuple[jax.Array, States]:
    """Runs one token through all layers, with its keys written at `slot`, the same for all rows; returns (hidden [B, D]
    after the final norm, states)."""
    rope = text.rope_tables(config, jnp.broadcast_to(positions_B, (3, 1, len(positions_B))))
    rope = tuple(table_1BR[0] for table_1BR in rope)
    new_states = []
    for group, (group_weights, group_states) in enumerate(zip(weights["layers"], states, strict=True)):
        new_group = []
        for layer, (layer_weights, state) in enumerate(zip(group_weights, group_states, strict=True)):
            kind, index = ("linear", (group, layer)) if layer < config.num_linear else ("full", (group,))
            layer_weights = layer_weights | stacked(weights, kind, index)
            y_BD = layers.rms_norm(x_BD, layer_weights["input_norm"], config.rms_norm_eps)
            if kind == "linear":
                mixed_BD, state = _linear_mixer(layer_weights, config, y_BD, state)
            else:
                mixed_BD, state = _full_mixer(layer_weights, config, y_BD, rope, mask_BS, state, slot)
            x_BD = x_BD + mixed_BD
            x_BD = x_BD + _mlp(layer_weights, layers.rms_norm(x_BD, layer_weights["post_norm"], config.rms_norm_eps))
            new_group.append(state)
        new_states.append(new_group)
    return layers.rms_norm(x_BD, weights["norm"], config.rms_norm_eps), new_states


def logits(weights: Weights, hidden_BD: jax.Array) -> jax.Array:
    """Computes unnormalised next-token scores [B, V], float32 whatever the model's dtype, as the trainer does."""
    return constrain(_product(hidden_BD, weights["head"], dtype=jnp.float32), "batch", "vocab")


def _product(x: jax.Array, kernel: jax.Array | Stacked, dtype: Any = None) -> jax.Array:
    """The product of rows x [B, *inputs] with a kernel over its input axes, in their dtype or in `dtype`."""
    if isinstance(kernel, Stacked):
        return kernel.product(x)
    num_rows, num_inputs = len(x), x.ndim - 1
    if not weights_first(num_rows):
        # Its axes are not joined here: "gate and up, each cut over devices" could not be cut as one axis.
        return jnp.tensordot(x, kernel, num_inputs, preferred_element_type=dtype)
    outputs = kernel.shape[:-num_inputs]
    # The barriers keep XLA from swapping the operands again.
    x_DB = jax.lax.optimization_barrier(x.reshape(num_rows, -1).T)
    y = jax.lax.optimization_barrier(
        jnp.matmul(kernel.reshape(math.prod(outputs), -1), x_DB, preferred_element_type=dtype)
    )
    return y.T.reshape(num_rows, *outputs)


def _mlp(weights: Params, x_BD: jax.Array) -> jax.Array:
    inner_B2F = constrain(_product(x_BD, weights["gate_up"]), "batch", None, "mlp")
    return _product(jax.nn.silu(inner_B2F[:, 0]) * inner_B2F[:, 1], weights["down"])


def _linear_mixer(
    weights: Params, config: TextConfig, x_BD: jax.Array, state: tuple[jax.Array, ...]
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Applies the recurrence, in float32; the state keeps its dtype."""
    context_BJGW, before_BNKV = state
    heads, value_dim = config.linear_num_value_heads, config.linear_value_head_dim
    num_rows, shared, width = len(x_BD), heads // config.linear_num_key_heads, context_BJGW.shape[-1]
    read_BGX = constrain(_product(x_BD, weights["inputs"]), "batch", "linear_heads", None)
    ends = (width, width + shared * value_dim, width + shared * (value_dim + 1))
    qkv_BGW, z, a, b = jnp.split(read_BGX, ends, axis=-1)
    mixed_BGW, context_BJGW = conv_step(qkv_BGW, weights["conv"], context_BJGW)
    q, k, v = deltanet.split_heads(jax.nn.silu(mixed_BGW), config)
    a_BN, b_BN = (gate.reshape(num_rows, heads) for gate in (a, b))
    g_BN, beta_BN = deltanet.gates(a_BN, b_BN, weights["a_log"], weights["dt_bias"])
    o_BNV, after_BNKV = gated_delta_step(q, k, v, g_BN, beta_BN, before_BNKV.astype(jnp.float32))
    z_BNV = z.reshape(num_rows, heads, value_dim)
    y_BNV = deltanet.gated_rms_norm(o_BNV.astype(x_BD.dtype), z_BNV, weights["gated_norm"], config.rms_norm_eps)
    return _product(y_BNV, weights["out"]), (context_BJGW, after_BNKV.astype(before_BNKV.dtype))


def _full_mixer(
    weights: Params,
    config: TextConfig,
    x_BD: jax.Array,
    rope: tuple[jax.Array, ...],
    mask_BS: jax.Array,
    state: tuple[jax.Array, ...],
    slot: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Attends with one query to the key slots that its row may see; keys and values are written first."""
    q_gate = constrain(_product(x_BD, weights["q"]), "batch", "heads", None)
    q_BNH, gate_BNH = jnp.split(q_gate, 2, axis=-1)
    kv_BK2H = constrain(_product(x_BD, weights["kv"]), "batch", "kv_heads", None, None)
    q_BNH = layers.rotate(layers.rms_norm(q_BNH, weights["q_norm"], config.rms_norm_eps), *rope)
    k_BKH = layers.rotate(layers.rms_norm(kv_BK2H[:, :, 0], weights["k_norm"], config.rms_norm_eps), *rope)
    keys_BKHS, values_BKSH = state
    keys_BKHS = _write(keys_BKHS, k_BKH, slot, axis=3)
    values_BKSH = _write(values_BKSH, kv_BK2H[:, :, 1], slot, axis=2)
    q_BKRH = q_BNH.reshape(len(x_BD), k_BKH.shape[1], -1, config.head_dim)
    scores_BKRS = jnp.einsum("bkrh,bkhs->bkrs", q_BKRH, keys_BKHS, preferred_element_type=jnp.float32)
    scores_BKRS = jnp.where(mask_BS[:, None, None], scores_BKRS * config.head_dim**-0.5, jnp.finfo(jnp.float32).min)
    attention_BKRS = jax.nn.softmax(scores_BKRS, axis=-1).astype(q_BNH.dtype)
    attended_BNH = jnp.matmul(attention_BKRS, values_BKSH).reshape(q_BNH.shape)
    return _product(attended_BNH * jax.nn.sigmoid(gate_BNH), weights["o"]), (keys_BKHS, values_BKSH)


def _write(cache: jax.Array, new_BKH: jax.Array, slot: jax.Array, axis: int) -> jax.Array:
    new = jnp.expand_dims(new_BKH.astype(cache.dtype), axis)
    return jax.lax.dynamic_update_slice_in_dim(cache, new, slot, axis)
