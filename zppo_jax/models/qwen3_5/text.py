"""The hybrid language model over whole sequences: groups of linear layers and one full-attention layer, scanned. One
token at a time: decode.py.

Parameters: {"embed", "linear": leading axes [groups, L], "full": leading axis [groups], "norm", "lm_head" if untied}.
A cache holds the states after the tokens so far: {"conv" [groups, L, B, J, G, W], "recurrent" [groups, L, B, N, K, V],
"k" and "v" [groups, B, S, K, H], "mask" [B, S]}; key slots need not be contiguous, `mask` says which are real.

Shape suffixes: B rows, T tokens, Q tokens of a block of queries, S key slots, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from zppo_jax.models.qwen3_5 import layers, quantised
from zppo_jax.models.qwen3_5.attention import GatedAttention, causal, causal_in_tree
from zppo_jax.models.qwen3_5.config import TextConfig
from zppo_jax.models.qwen3_5.deltanet import GatedDeltaNet
from zppo_jax.models.qwen3_5.layers import Remat, RMSNorm, SwiGLU, weight
from zppo_jax.models.qwen3_5.parameters import Params
from zppo_jax.models.qwen3_5.tree import Tree
from zppo_jax.parallel import constrain

Cache = dict[str, Any]
UNROLLED_LAYERS = 8
"""Models up to this depth are compiled layer by layer: scanned layers pass weights and activations through slices of
stacked arrays, which takes a quarter of the time of a small model on a CPU. Deeper ones would compile for too long."""


class Block(nnx.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)); the two subclasses below pass in the mixer."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs, mixer: type[GatedAttention] | type[GatedDeltaNet]):
        self.input_norm = RMSNorm(rngs, config.hidden_size, config.rms_norm_eps)
        self.mixer = mixer(config, rngs)
        self.post_norm = RMSNorm(rngs, config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(rngs, config.hidden_size, config.intermediate_size)

    def __call__(self, x_BTD: jax.Array, *context: Any) -> tuple[jax.Array, Any]:
        mixed, state = self.mixer(self.input_norm(x_BTD), *context)
        x_BTD = x_BTD + mixed
        return x_BTD + self.mlp(self.post_norm(x_BTD)), state


Layer = Callable[[Block, jax.Array, Any], tuple[jax.Array, Any]]
"""(a layer with its weights, its input, its state) -> (its output, its new state)."""


def linear_block(config: TextConfig, rngs: nnx.Rngs) -> Block:
    return Block(config, rngs, GatedDeltaNet)


def full_block(config: TextConfig, rngs: nnx.Rngs) -> Block:
    return Block(config, rngs, GatedAttention)


class Embeddings(nnx.Module):
    """The parts before and after the layers: token embedding, final norm, and the head if it is not tied."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.hidden_size)
        self.embed = weight(rngs, shape, ("vocab", "embed"), "embedding")
        self.norm = RMSNorm(rngs, config.hidden_size, config.rms_norm_eps)
        if not config.tie_word_embeddings:
            self.lm_head = weight(rngs, shape, ("vocab", "embed"))


def abstract(config: TextConfig) -> Params:
    """The shapes of all parameters."""
    return layers.abstract(Embeddings, config) | {
        "linear": layers.abstract(linear_block, config, (config.num_groups, config.num_linear)),
        "full": layers.abstract(full_block, config, (config.num_groups,)),
    }


def init(config: TextConfig, key: jax.Array) -> Params:
    """Initialises all parameters at random."""
    outer, linear, full = jax.random.split(key, 3)
    return layers.init(Embeddings, config, outer) | {
        "linear": layers.init(linear_block, config, linear, (config.num_groups, config.num_linear)),
        "full": layers.init(full_block, config, full, (config.num_groups,)),
    }


def logical_axes(config: TextConfig) -> Params:
    """The logical names of the axes of all parameters, without the leading layer axes."""
    return _of_all(layers.logical_axes, config)


def num_inputs(config: TextConfig) -> Params:
    """The number of input axes of each kernel, without the leading layer axes; 0 for all other parameters."""
    return _of_all(layers.num_inputs, config)


def _of_all(declared: Callable[..., Params], config: TextConfig) -> Params:
    return declared(Embeddings, config) | {
        "linear": declared(linear_block, config),
        "full": declared(full_block, config),
    }


CACHE_AXES = {
    "conv": ("batch", None, "linear_heads", None),
    "recurrent": ("batch", "linear_heads", None, None),
    "k": ("batch", None, "kv_heads", None),
    "v": ("batch", None, "kv_heads", None),
    "mask": ("batch", None),
}
"""The logical names of the axes of a cache, without the leading layer axes."""


def empty_cache(config: TextConfig, num_rows: int, num_slots: int, dtype: Any) -> Cache:
    """Makes a cache before the first token: zero states and `num_slots` empty key slots."""
    groups, linear = config.num_groups, config.num_linear
    heads, key_dim, value_dim = config.linear_num_value_heads, config.linear_key_head_dim, config.linear_value_head_dim
    keys = (groups, num_rows, num_slots, config.num_key_value_heads, config.head_dim)
    channels = (config.linear_num_key_heads, config.conv_dim // config.linear_num_key_heads)
    return {
        "conv": jnp.zeros((groups, linear, num_rows, config.linear_conv_kernel_dim - 1, *channels), dtype),
        "recurrent": jnp.zeros((groups, linear, num_rows, heads, key_dim, value_dim), jnp.float32),
        "k": jnp.zeros(keys, dtype),
        "v": jnp.zeros(keys, dtype),
        "mask": jnp.zeros((num_rows, num_slots), bool),
    }


def rope_tables(config: TextConfig, positions_3BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    return layers.mrope_tables(positions_3BT, config.rotary_dim, config.rope_theta, config.mrope_section)


def run_layers(
    params: Params,
    config: TextConfig,
    x_BTD: jax.Array,
    positions_3BT: jax.Array,
    mask_BT: jax.Array,
    cache: Cache,
    remat: Remat = "none",
) -> tuple[jax.Array, Cache]:
    """Runs all layers over a whole sequence that continues `cache`. Returns (hidden after the final norm, new cache).

    Pads (`mask_BT` false) may come before and after a row's tokens, but not between two of them, and before them only
    in the first piece: the convolution would see zeros there. Attention is causal in slot order.
    """
    end_B = jnp.max(jnp.where(mask_BT, jnp.arange(1, mask_BT.shape[1] + 1), 0), axis=1)
    visible, rope = causal(cache["mask"], mask_BT), rope_tables(config, positions_3BT)
    states = {"linear": (cache["conv"], cache["recurrent"]), "full": (cache["k"], cache["v"])}

    def linear(block: Block, x_BTD: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, Any]:
        return block(x_BTD, mask_BT, (*state, end_B))

    def full(block: Block, x_BTD: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, Any]:
        return block(x_BTD, rope, visible, state)

    hidden_BTD, ((conv, recurrent), (k, v)) = _run(params, config, x_BTD, linear, full, states, remat)
    return hidden_BTD, {
        "conv": conv,
        "recurrent": recurrent,
        "k": jnp.concatenate([cache["k"], k.astype(cache["k"].dtype)], axis=2),
        "v": jnp.concatenate([cache["v"], v.astype(cache["v"].dtype)], axis=2),
        "mask": jnp.concatenate([cache["mask"], mask_BT], axis=1),
    }


def run_tree(
    params: Params,
    config: TextConfig,
    x_BTD: jax.Array,
    positions_3BT: jax.Array,
    mask_BT: jax.Array,
    tree: Tree,
    remat: Remat = "none",
) -> jax.Array:
    """Runs all layers over rows of trees (tree.py). Returns hidden [B, T, D] after the final norm.

    A token's position counts from the start of its trunk.
    """
    visible, rope = causal_in_tree(mask_BT, tree), rope_tables(config, positions_3BT)

    def linear(block: Block, x_BTD: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, Any]:
        del state
        return block(x_BTD, mask_BT, tree)

    def full(block: Block, x_BTD: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, Any]:
        return block(x_BTD, rope, visible, state)[0], ()

    return _run(params, config, x_BTD, linear, full, {"linear": (), "full": ()}, remat)[0]


def _run(
    params: Params, config: TextConfig, x_BTD: jax.Array, linear: Layer, full: Layer, states: Params, remat: Remat
) -> tuple[jax.Array, tuple[Any, Any]]:
    """Runs all layers, with their states, and the final norm. Returns (hidden, new states of the linear layers and of
    the full ones, stacked)."""
    through = _one_by_one if config.num_hidden_layers <= UNROLLED_LAYERS else jax.lax.scan

    def linear_layer(x, layer):
        x, state = linear(layers.bind(linear_block, config, quantised.dequantised(layer[0], x.dtype)), x, layer[1])
        return constrain(x, "batch", None, None), state

    def full_layer(x, weights, state):
        x, state = full(layers.bind(full_block, config, quantised.dequantised(weights, x.dtype)), x, state)
        return constrain(x, "batch", None, None), state

    linear_layer, full_layer = (_remat(layer, remat != "none") for layer in (linear_layer, full_layer))

    def group(x, stacked):
        weights, states = stacked
        x, of_linear = through(linear_layer, x, (weights["linear"], states["linear"]))
        x, of_full = full_layer(x, weights["full"], states["full"])
        return x, (of_linear, of_full)

    stacked = {name: params[name] for name in ("linear", "full")}
    group, x_BTD = _remat(group, remat == "group"), constrain(x_BTD, "batch", None, None)
    x_BTD, new_states = through(group, x_BTD, (stacked, states))
    return layers.bind(Embeddings, config, without_layers(params)).norm(x_BTD), new_states


def _one_by_one(layer: Callable[..., Any], x: jax.Array, stacked: Any) -> tuple[jax.Array, Any]:
    """Does the work of `jax.lax.scan` without a loop. An unrolled scan would still stack what each layer keeps for the
    backward pass.

    Weights are split, not indexed: the gradient is then one concatenate instead of a padded add per layer.
    """
    leaves, structure = jax.tree.flatten(stacked)
    parts = zip(*(jnp.split(leaf, len(leaf)) for leaf in leaves), strict=True)
    states = []
    for part in parts:
        x, state = layer(x, structure.unflatten([leaf[0] for leaf in part]))
        states.append(state)
    return x, jax.tree.map(lambda *of_layers: jnp.stack(of_layers), *states)


def _remat(layer: Callable[..., Any], active: bool) -> Callable[..., Any]:
    return jax.checkpoint(layer) if active else layer


def without_layers(params: Params) -> Params:
    """The parameters of `Embeddings`."""
    return {name: value for name, value in params.items() if name not in ("linear", "full")}


def embed(params: Params, tokens_BT: jax.Array) -> jax.Array:
    """Looks up token embeddings [B, T, D]."""
    table_VD = constrain(params["embed"], "vocab", None)  # whole rows are looked up; cut ones would be resharded after
    return constrain(_rows_of(table_VD, tokens_BT), "batch", None, None)


@jax.custom_vjp
def _rows_of(table_VD: jax.Array, tokens_BT: jax.Array) -> jax.Array:
    """Looks up rows of the table, with a gradient that is summed in float32: for a token that occurs thousands of
    times, a sum in bfloat16 stalls as soon as a summand is less than half a unit in its last place."""
    return jnp.take(table_VD, tokens_BT, axis=0)


def _rows_forward(table_VD: jax.Array, tokens_BT: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _rows_of(table_VD, tokens_BT), (table_VD, tokens_BT)  # only the table's shape and dtype are used


def _rows_backward(residuals: tuple[jax.Array, jax.Array], slope_BTD: jax.Array) -> tuple[jax.Array, None]:
    table_VD, tokens_BT = residuals
    sums_VD = jnp.zeros(table_VD.shape, jnp.float32).at[tokens_BT].add(slope_BTD.astype(jnp.float32))
    return sums_VD.astype(table_VD.dtype), None


_rows_of.defvjp(_rows_forward, _rows_backward)


def head(params: Params) -> jax.Array:
    """The matrix [V, D] from hidden states to scores; the embedding if they are tied."""
    return params.get("lm_head", params["embed"])


def logits(params: Params, hidden: jax.Array) -> jax.Array:
    """Computes unnormalised next-token scores [..., V], float32 whatever the model's dtype."""
    scores = jnp.matmul(hidden, head(params).T, preferred_element_type=jnp.float32)
    return constrain(scores, "batch", *(None,) * (scores.ndim - 2), "vocab")
