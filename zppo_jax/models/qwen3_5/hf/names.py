"""The table of a Hugging Face checkpoint: name there <-> path here, with the conversion between them, used both ways.

Conversions that are not a plain copy: every matrix is transposed (torch keeps [out, in]), and its axes of heads are
axes of their own here, so that sharding falls on whole heads; the linear layers' q, k and v lie one behind the other
there and head by head here (a key head's q and k, then the v of its value heads), in the projection and in the
depthwise convolution; the patch convolution is [W, 3, 2, 16, 16] there and [1536, W] here; layers are separate tensors
there and slices of stacked leaves here. A tied checkpoint has no `lm_head.weight`; `mtp.*` is ignored.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from zppo_jax.models.qwen3_5 import vlm
from zppo_jax.models.qwen3_5.config import Config, TextConfig
from zppo_jax.models.qwen3_5.layers import Params


def flatten(tree: Params) -> dict[str, Any]:
    """{"a": {"b": x}} -> {"a/b": x}."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: dict[str, Any]) -> Params:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(flat, sep="/")


IGNORED = ("mtp.",)
KEPT_FLOAT32 = ("text/linear/mixer/a_log", "text/linear/mixer/norm/weight")
"""Float32 in published bfloat16 checkpoints (9B: 3,840 elements) and here."""

STACKS = ("text/linear/", "text/full/", "vision/blocks/")
"""Where layers share leaves, stacked along leading axes."""

_Row = tuple[str, str, str]  # name there, path here, conversion
_COMMON = (
    ("input_layernorm.weight", "input_norm/weight", "copy"),
    ("post_attention_layernorm.weight", "post_norm/weight", "copy"),
    ("mlp.gate_proj.weight", "mlp/gate/kernel", "matrix"),
    ("mlp.up_proj.weight", "mlp/up/kernel", "matrix"),
    ("mlp.down_proj.weight", "mlp/down/kernel", "matrix"),
)
_LINEAR = (
    ("linear_attn.in_proj_qkv.weight", "mixer/qkv/kernel", "qkv"),
    ("linear_attn.in_proj_z.weight", "mixer/z/kernel", "matrix"),
    ("linear_attn.in_proj_b.weight", "mixer/b/kernel", "matrix"),
    ("linear_attn.in_proj_a.weight", "mixer/a/kernel", "matrix"),
    ("linear_attn.conv1d.weight", "mixer/conv", "conv1d"),
    ("linear_attn.A_log", "mixer/a_log", "copy"),
    ("linear_attn.dt_bias", "mixer/dt_bias", "copy"),
    ("linear_attn.norm.weight", "mixer/norm/weight", "copy"),
    ("linear_attn.out_proj.weight", "mixer/out/kernel", "matrix"),
)
_FULL = (
    ("self_attn.q_proj.weight", "mixer/q/kernel", "matrix"),
    ("self_attn.k_proj.weight", "mixer/k/kernel", "matrix"),
    ("self_attn.v_proj.weight", "mixer/v/kernel", "matrix"),
    ("self_attn.o_proj.weight", "mixer/o/kernel", "matrix"),
    ("self_attn.q_norm.weight", "mixer/q_norm/weight", "copy"),
    ("self_attn.k_norm.weight", "mixer/k_norm/weight", "copy"),
)
_VISION_BLOCK = tuple(
    (f"{there}.{part}", f"{here}/{'kernel' if matrix and part == 'weight' else part}", conversion)
    for there, here, matrix in (
        ("norm1", "norm1", False),
        ("norm2", "norm2", False),
        ("attn.qkv", "qkv", True),
        ("attn.proj", "proj", True),
        ("mlp.linear_fc1", "fc1", True),
        ("mlp.linear_fc2", "fc2", True),
    )
    for part, conversion in (("weight", "matrix" if matrix else "copy"), ("bias", "copy"))
)
_VISION = (
    ("patch_embed.proj.weight", "patch/proj/kernel", "patch"),
    ("patch_embed.proj.bias", "patch/proj/bias", "copy"),
    ("pos_embed.weight", "patch/position", "copy"),
    ("merger.norm.weight", "merger/norm/weight", "copy"),
    ("merger.norm.bias", "merger/norm/bias", "copy"),
    ("merger.linear_fc1.weight", "merger/fc1/kernel", "matrix"),
    ("merger.linear_fc1.bias", "merger/fc1/bias", "copy"),
    ("merger.linear_fc2.weight", "merger/fc2/kernel", "matrix"),
    ("merger.linear_fc2.bias", "merger/fc2/bias", "copy"),
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint: its name and shape there, and the slice `index` of the leaf at `path` here, whose
    shape (of the slice) is `shape`."""

    name: str
    shape_there: tuple[int, ...]
    path: str
    index: tuple[int, ...]
    shape: tuple[int, ...]
    conversion: str
    text: TextConfig

    def inward(self, tensor: np.ndarray) -> np.ndarray:
        """The tensor in our layout; a view where that is possible (only q, k and v are copied)."""
        if self.conversion == "qkv":
            tensor = _by_key_head(tensor, self.text)
        elif self.conversion == "conv1d":
            tensor = _by_key_head(tensor[:, 0], self.text)
        elif self.conversion == "patch":
            tensor = tensor.reshape(tensor.shape[0], -1)
        return (tensor if self.conversion == "copy" else tensor.T).reshape(self.shape)

    def outward(self, value: np.ndarray) -> np.ndarray:
        """The slice in the checkpoint's layout: the inverse of `inward`."""
        if self.conversion == "copy":
            return value.reshape(self.shape_there)
        matrix = value.reshape(_inner(self), -1).T
        if self.conversion in ("qkv", "conv1d"):
            matrix = _one_behind_the_other(matrix, self.text)
        return matrix.reshape(self.shape_there)


def _inner(entry: Entry) -> int:
    """The input side of a matrix: what is left of its size when the rows there (the outputs) are divided out."""
    return math.prod(entry.shape) // entry.shape_there[0]


def _widths(text: TextConfig) -> tuple[int, int, int]:
    """Rows of q, of k and of all v that belong to one key head."""
    return text.linear_key_head_dim, text.linear_key_head_dim, text.value_dim // text.linear_num_key_heads


def _by_key_head(rows_CX: np.ndarray, text: TextConfig) -> np.ndarray:
    """Rows [all q | all k | all v] -> for each key head [its q | its k | the v of its value heads]."""
    parts = np.split(rows_CX, [text.key_dim, 2 * text.key_dim])
    heads = text.linear_num_key_heads
    blocks = [part.reshape(heads, -1, rows_CX.shape[1]) for part in parts]
    return np.concatenate(blocks, axis=1).reshape(rows_CX.shape)


def _one_behind_the_other(rows_CX: np.ndarray, text: TextConfig) -> np.ndarray:
    """The inverse of `_by_key_head`."""
    q, k, _ = _widths(text)
    blocks = np.split(rows_CX.reshape(text.linear_num_key_heads, -1, rows_CX.shape[1]), [q, q + k], axis=1)
    return np.concatenate([block.reshape(-1, rows_CX.shape[1]) for block in blocks])


def _shape_there(shape: tuple[int, ...], conversion: str, path: str, config: Config) -> tuple[int, ...]:
    vision = config.vision
    if conversion == "copy":
        return (math.prod(shape),) if path.endswith("/bias") else shape
    if conversion == "patch":
        return (shape[-1], vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    if conversion == "conv1d":
        return (math.prod(shape[1:]), 1, shape[0])
    inputs = math.prod(shape[:-1]) if path.endswith(("/o/kernel", "/out/kernel", "/proj/kernel")) else shape[0]
    return (math.prod(shape) // inputs, inputs)


def _rows(config: Config) -> Iterator[tuple[str, str, tuple[int, ...], str]]:
    """(name there, path here, index into the stacked leaf, conversion) of every tensor."""
    text, vision = config.text, config.vision
    yield "model.language_model.embed_tokens.weight", "text/embed", (), "copy"
    yield "model.language_model.norm.weight", "text/norm/weight", (), "copy"
    if not text.tie_word_embeddings:
        yield "lm_head.weight", "text/lm_head", (), "copy"
    for layer in range(text.num_hidden_layers):
        group, place = divmod(layer, text.full_attention_interval)
        full = place == text.num_linear
        index = (group,) if full else (group, place)
        for there, here, conversion in (*_COMMON, *(_FULL if full else _LINEAR)):
            name = f"model.language_model.layers.{layer}.{there}"
            yield name, f"text/{'full' if full else 'linear'}/{here}", index, conversion
    for there, here, conversion in _VISION:
        yield f"model.visual.{there}", f"vision/{here}", (), conversion
    for layer in range(vision.depth):
        for there, here, conversion in _VISION_BLOCK:
            yield f"model.visual.blocks.{layer}.{there}", f"vision/blocks/{here}", (layer,), conversion


def table(config: Config) -> Iterator[Entry]:
    """Every tensor of a checkpoint of this configuration, layer by layer."""
    leaves = {path: leaf.shape for path, leaf in flatten(vlm.abstract_params(config)).items()}
    for name, path, index, conversion in _rows(config):
        shape = leaves[path][len(index) :]
        there = _shape_there(shape, conversion, path, config)
        yield Entry(name, there, path, index, shape, conversion, config.text)


def stack_of(path: str) -> str:
    """The stack that a parameter is of; empty for one of its own."""
    return next((stack for stack in STACKS if path.startswith(stack)), "")


def count(params: Params | Any) -> int:
    """Number of parameters of a tree (arrays or shapes)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
