"""The whole vision-language model as pure functions of (params, config, inputs).

`inputs` is the dict that `inputs.from_hf` or the rollout batches build: tokens_BT, mask_BT, positions_3BT, feature_BT,
patches_ISC, grid_IS5, and the fields of a Tree if rows hold trees.

Shape suffixes: B rows, T tokens, D model, V vocabulary, I rows of patches, S patch slots, M merged slots.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from zppo_jax.models.qwen3_5 import sizes, text, vision
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.models.qwen3_5.layers import Remat
from zppo_jax.models.qwen3_5.parameters import Params
from zppo_jax.models.qwen3_5.tree import Tree
from zppo_jax.parallel import constrain


def abstract_params(config: Config | str) -> Params:
    """The shapes of all parameters, without allocation, of a configuration or a published size by name ("9B")."""
    if isinstance(config, str):
        config = sizes.get(config)
    return {"text": text.abstract(config.text), "vision": vision.abstract(config.vision)}


def logical_axes(config: Config) -> Params:
    """The logical names of the axes of all parameters (parallel/rules.py), without the leading layer axes."""
    return {"text": text.logical_axes(config.text), "vision": vision.logical_axes(config.vision)}


def num_inputs(config: Config) -> Params:
    """The number of input axes of each kernel, without the leading layer axes; 0 for all other parameters."""
    return {"text": text.num_inputs(config.text), "vision": vision.num_inputs(config.vision)}


def init_params(config: Config, key: jax.Array) -> Params:
    """Initialises float32 parameters at random."""
    text_key, vision_key = jax.random.split(key)
    return {"text": text.init(config.text, text_key), "vision": vision.init(config.vision, vision_key)}


def vision_features(params: Params, config: Config, inputs: dict[str, Any], remat: Remat = "none") -> jax.Array:
    """Computes features [I, M, D] of all rows of patches, in the language model's dtype."""
    features_IMD = vision.encode(params["vision"], config.vision, inputs["patches_ISC"], inputs["grid_IS5"], remat)
    return features_IMD.astype(params["text"]["embed"].dtype)


def embed(params: Params, config: Config, inputs: dict[str, Any], remat: Remat = "none") -> jax.Array:
    """Computes token embeddings [B, T, D] with the vision features in place of the placeholders.

    `inputs` may hold "features_IMD" instead of patches and grids.
    """
    x_BTD = text.embed(params["text"], inputs["tokens_BT"])
    features_IMD = inputs.get("features_IMD")
    if features_IMD is None:
        features_IMD = vision_features(params, config, inputs, remat)
    # Any row of tokens may show any row of patches, so on a mesh every device holds all features.
    features = constrain(features_IMD.reshape(-1, features_IMD.shape[-1]).astype(x_BTD.dtype), None, None)
    index_BT = inputs["feature_BT"]
    chosen_BTD = jnp.take(features, jnp.maximum(index_BT, 0), axis=0)
    return constrain(jnp.where((index_BT >= 0)[..., None], chosen_BTD, x_BTD), "batch", None, None)


def prefill(
    params: Params, config: Config, inputs: dict[str, Any], remat: Remat = "none"
) -> tuple[jax.Array, text.Cache]:
    """Run prompts from an empty cache. Returns (final hidden states [B, T, D], cache with T key slots)."""
    x_BTD = embed(params, config, inputs, remat)
    cache = text.empty_cache(config.text, x_BTD.shape[0], 0, x_BTD.dtype)
    positions, mask = inputs["positions_3BT"], inputs["mask_BT"]
    return text.run_layers(params["text"], config.text, x_BTD, positions, mask, cache, remat)


def run_tree(params: Params, config: Config, inputs: dict[str, Any], remat: Remat = "none") -> jax.Array:
    """Computes hidden states [B, T, D] after the final norm, for rows of prompts with their responses."""
    x_BTD = embed(params, config, inputs, remat)
    tree = Tree(*(inputs[name] for name in Tree._fields))
    positions, mask = inputs["positions_3BT"], inputs["mask_BT"]
    return text.run_tree(params["text"], config.text, x_BTD, positions, mask, tree, remat)


def logits(params: Params, config: Config, inputs: dict[str, Any]) -> jax.Array:
    """Computes next-token scores [B, T, V] of whole sequences."""
    hidden_BTD, _ = prefill(params, config, inputs)
    return text.logits(params["text"], hidden_BTD)
