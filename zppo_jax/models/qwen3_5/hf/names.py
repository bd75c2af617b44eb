"""The table of a Hugging Face checkpoint: name there <-> path here, with the conversion, used in both directions.

Conversions that are not a plain copy: every matrix is transposed (torch keeps [out, in]), and heads are separate axes
here, so that sharding never splits a head; the linear layers' q, k and v are one after the other there and head by head
here (a key head's q and k, then the v of its value heads), in the projection and in the depthwise convolution; the
patch convolution is [W, 3, 2, 16, 16] there and [1536, W] here; layers are separate tensors there and slices of stacked
leaves here. A tied checkpoint has no `lm_head.weight`; `mtp.*` is ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from zppo_jax.models.qwen3_5 import vlm
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.models.qwen3_5.hf.conversions import BIAS, CONV1D, COPY, MATRIX, PATCH, QKV, Conversion, Leaf
from zppo_jax.models.qwen3_5.parameters import flatten

IGNORED = ("mtp.",)
KEPT_FLOAT32 = ("text/linear/mixer/a_log", "text/linear/mixer/norm/weight")
"""Float32 in published bfloat16 checkpoints (9B: 3,840 elements) and here."""

STACKS = ("text/linear/", "text/full/", "vision/blocks/")
"""The paths where layers share leaves, stacked along leading axes."""


class _Row(NamedTuple):
    """A tensor of a part of the model: its name there, its path here, and the conversion between them."""

    there: str
    here: str
    conversion: Conversion


_COMMON = (
    _Row("input_layernorm.weight", "input_norm/weight", COPY),
    _Row("post_attention_layernorm.weight", "post_norm/weight", COPY),
    _Row("mlp.gate_proj.weight", "mlp/gate/kernel", MATRIX),
    _Row("mlp.up_proj.weight", "mlp/up/kernel", MATRIX),
    _Row("mlp.down_proj.weight", "mlp/down/kernel", MATRIX),
)
_LINEAR = (
    _Row("linear_attn.in_proj_qkv.weight", "mixer/qkv/kernel", QKV),
    _Row("linear_attn.in_proj_z.weight", "mixer/z/kernel", MATRIX),
    _Row("linear_attn.in_proj_b.weight", "mixer/b/kernel", MATRIX),
    _Row("linear_attn.in_proj_a.weight", "mixer/a/kernel", MATRIX),
    _Row("linear_attn.conv1d.weight", "mixer/conv", CONV1D),
    _Row("linear_attn.A_log", "mixer/a_log", COPY),
    _Row("linear_attn.dt_bias", "mixer/dt_bias", COPY),
    _Row("linear_attn.norm.weight", "mixer/norm/weight", COPY),
    _Row("linear_attn.out_proj.weight", "mixer/out/kernel", MATRIX),
)
_FULL = (
    _Row("self_attn.q_proj.weight", "mixer/q/kernel", MATRIX),
    _Row("self_attn.k_proj.weight", "mixer/k/kernel", MATRIX),
    _Row("self_attn.v_proj.weight", "mixer/v/kernel", MATRIX),
    _Row("self_attn.o_proj.weight", "mixer/o/kernel", MATRIX),
    _Row("self_attn.q_norm.weight", "mixer/q_norm/weight", COPY),
    _Row("self_attn.k_norm.weight", "mixer/k_norm/weight", COPY),
)
_VISION_BLOCK = tuple(
    _Row(f"{there}.{part}", f"{here}/{'kernel' if matrix and part == 'weight' else part}", conversion)
    for there, here, matrix in (
        ("norm1", "norm1", False),
        ("norm2", "norm2", False),
        ("attn.qkv", "qkv", True),
        ("attn.proj", "proj", True),
        ("mlp.linear_fc1", "fc1", True),
        ("mlp.linear_fc2", "fc2", True),
    )
    for part, conversion in (("weight", MATRIX if matrix else COPY), ("bias", BIAS))
)
_VISION = (
    _Row("patch_embed.proj.weight", "patch/proj/kernel", PATCH),
    _Row("patch_embed.proj.bias", "patch/proj/bias", BIAS),
    _Row("pos_embed.weight", "patch/position", COPY),
    _Row("merger.norm.weight", "merger/norm/weight", COPY),
    _Row("merger.norm.bias", "merger/norm/bias", BIAS),
    _Row("merger.linear_fc1.weight", "merger/fc1/kernel", MATRIX),
    _Row("merger.linear_fc1.bias", "merger/fc1/bias", BIAS),
    _Row("merger.linear_fc2.weight", "merger/fc2/kernel", MATRIX),
    _Row("merger.linear_fc2.bias", "merger/fc2/bias", BIAS),
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint: its name there, and the slice `index` of the leaf at `path` here."""

    name: str
    path: str
    index: tuple[int, ...]
    leaf: Leaf
    conversion: Conversion

    @property
    def shape(self) -> tuple[int, ...]:
        """The slice's shape here."""
        return self.leaf.shape

    @property
    def shape_there(self) -> tuple[int, ...]:
        """The tensor's shape there."""
        return self.conversion.shape_there(self.leaf)

    def inward(self, tensor: np.ndarray) -> np.ndarray:
        """Converts the tensor to our layout; a view if possible (only q, k and v are copied)."""
        return self.conversion.inward(tensor, self.leaf).reshape(self.shape)

    def outward(self, value: np.ndarray) -> np.ndarray:
        """Converts the slice to the checkpoint's layout: the inverse of `inward`."""
        return self.conversion.outward(value, self.leaf).reshape(self.shape_there)


def _rows(config: Config) -> Iterator[tuple[_Row, tuple[int, ...]]]:
    """Yields every tensor with its whole name and path, and its index into the stacked leaf."""
    text, vision = config.text, config.vision
    yield _Row("model.language_model.embed_tokens.weight", "text/embed", COPY), ()
    yield _Row("model.language_model.norm.weight", "text/norm/weight", COPY), ()
    if not text.tie_word_embeddings:
        yield _Row("lm_head.weight", "text/lm_head", COPY), ()
    for layer in range(text.num_hidden_layers):
        group, place = divmod(layer, text.full_attention_interval)
        full = place == text.num_linear
        index = (group,) if full else (group, place)
        stack = "text/full" if full else "text/linear"
        for row in (*_COMMON, *(_FULL if full else _LINEAR)):
            yield _inside(row, f"model.language_model.layers.{layer}", stack), index
    for row in _VISION:
        yield _inside(row, "model.visual", "vision"), ()
    for layer in range(vision.depth):
        for row in _VISION_BLOCK:
            yield _inside(row, f"model.visual.blocks.{layer}", "vision/blocks"), (layer,)


def _inside(row: _Row, there: str, here: str) -> _Row:
    return row._replace(there=f"{there}.{row.there}", here=f"{here}/{row.here}")


def table(config: Config) -> Iterator[Entry]:
    """Yields every tensor of a checkpoint of this configuration, layer by layer."""
    leaves, num_inputs = flatten(vlm.abstract_params(config)), flatten(vlm.num_inputs(config))
    for (name, path, conversion), index in _rows(config):
        leaf = Leaf(leaves[path].shape[len(index) :], num_inputs[path], config)
        yield Entry(name, path, index, leaf, conversion)


def stack_of(path: str) -> str:
    """The stack that a parameter belongs to; empty if it is not stacked."""
    return next((stack for stack in STACKS if path.startswith(stack)), "")
