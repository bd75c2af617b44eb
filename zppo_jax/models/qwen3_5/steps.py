"""The language model one token at a time: weights and states layer by layer, nothing stacked, nothing scanned.

Shape suffixes: B rows, S key slots, K key-value heads, H head dim, D model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zppo_jax.models.qwen3_5 import layers, text
from zppo_jax.models.qwen3_5.config import TextConfig
from zppo_jax.models.qwen3_5.layers import Params

States = list[list[tuple[jax.Array, ...]]]
"""Of decoding, group by group and layer by layer: (conv, recurrent) of a linear layer, (k, v) [B, K, S, H] of a full
one."""


def unstack_layers(params: Params, config: TextConfig) -> list[list[Params]]:
    """Per-layer parameter slices, group by group; sliced once outside the decoding loop (SkyRL#1363: 1.65x)."""
    return [
        [jax.tree.map(lambda x, g=g, i=i: x[g, i], params["linear"]) for i in range(config.num_linear)]
        + [jax.tree.map(lambda x, g=g: x[g], params["full"])]
        for g in range(config.num_groups)
    ]


def unstack_cache(cache: text.Cache, config: TextConfig, num_new: int = 0) -> States:
    """Per-layer states with `num_new` more key slots; the mask is kept by the caller."""

    def keys(x_BSKH: jax.Array) -> jax.Array:
        return jnp.swapaxes(jnp.pad(x_BSKH, [(0, 0), (0, num_new), (0, 0), (0, 0)]), 1, 2)

    return [
        [(cache["conv"][g, i], cache["recurrent"][g, i]) for i in range(config.num_linear)]
        + [(keys(cache["k"][g]), keys(cache["v"][g]))]
        for g in range(config.num_groups)
    ]


def map_states(linear: Callable[..., Any], full: Callable[..., Any], config: TextConfig, *states: States) -> States:
    """`linear` for the arrays of the linear layers (convolution contexts, recurrent states), `full` for keys and
    values; of several states, array by array."""
    return [
        [
            tuple((linear if layer < config.num_linear else full)(*arrays) for arrays in zip(*pairs, strict=True))
            for layer, pairs in enumerate(zip(*groups, strict=True))
        ]
        for groups in zip(*states, strict=True)
    ]


def state_axes(config: TextConfig) -> list[list[tuple[tuple[str | None, ...], ...]]]:
    """Logical names of the axes of per-layer states."""
    linear, full = (text.CACHE_AXES["conv"], text.CACHE_AXES["recurrent"]), (("batch", "kv_heads", None, None),) * 2
    return [[linear] * config.num_linear + [full] for _ in range(config.num_groups)]


def step_layers(
    weights: list[list[Params]],
    params: Params,
    config: TextConfig,
    x_B1D: jax.Array,
    positions_B: jax.Array,
    mask_BS: jax.Array,
    states: States,
    slot: jax.Array,
) -> tuple[jax.Array, States]:
    """One token through all layers; returns (hidden [B, D], states)."""
    rope = text.rope_tables(config, jnp.broadcast_to(positions_B[None, :, None], (3, positions_B.shape[0], 1)))
    new_states = []
    for group_weights, group_states in zip(weights, states, strict=True):
        new_group = []
        for layer, (layer_weights, state) in enumerate(zip(group_weights, group_states, strict=True)):
            if layer < config.num_linear:
                x_B1D, state = layers.bind(text.linear_block, config, layer_weights).step(x_B1D, state)
            else:
                x_B1D, state = layers.bind(text.full_block, config, layer_weights).step(
                    x_B1D, rope, mask_BS, state, slot
                )
            new_group.append(state)
        new_states.append(new_group)
    return layers.bind(text.Ends, config, text.ends(params)).norm(x_B1D)[:, 0], new_states
