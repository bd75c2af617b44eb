"""The vision tower: patches in merge-block order -> one feature per 2x2 block.

Frames (an image is one, a video one for each temporal patch) are packed whole into rows of a fixed number of patch
slots, in any order. Attention stays inside a frame, so the result does not depend on a frame's place, a new size of
image compiles nothing, and the work grows with the length of a row, never with that of a video.

Shape suffixes: I rows, S patch slots, Q slots of a block of queries, C patch values, W vision width, N heads,
H head dim, M merged slots (S / 4), D model.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from zppo_jax.models.qwen3_5 import layers
from zppo_jax.models.qwen3_5.attention import QUERY_BLOCK, Visible, attend
from zppo_jax.models.qwen3_5.config import VisionConfig
from zppo_jax.models.qwen3_5.layers import LayerNorm, Linear, Remat, rotate, weight
from zppo_jax.models.qwen3_5.parameters import Params
from zppo_jax.parallel import constrain


class VisionBlock(nnx.Module):
    """Pre-norm transformer block with biases, full attention inside a frame, tanh-GELU."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        width, inner = config.hidden_size, config.intermediate_size
        heads = (config.num_heads, width // config.num_heads)
        self.norm1, self.norm2 = LayerNorm(rngs, width), LayerNorm(rngs, width)
        self.qkv = Linear(rngs, width, (3, *heads), ("vision_embed", None, "vision_heads", None), bias=True)
        self.proj = Linear(rngs, heads, width, ("vision_heads", None, "vision_embed"), bias=True)
        self.fc1 = Linear(rngs, width, inner, ("vision_embed", "vision_mlp"), bias=True)
        self.fc2 = Linear(rngs, inner, width, ("vision_mlp", "vision_embed"), bias=True)

    def __call__(self, x_ISW: jax.Array, rope: tuple[jax.Array, jax.Array], visible: Visible) -> jax.Array:
        qkv = constrain(self.qkv(self.norm1(x_ISW)), "batch", None, None, "vision_heads", None)
        q, k, v = (qkv[:, :, part] for part in range(3))
        # Rotation in float32, as the reference does for vision (text rotates in the model dtype).
        q, k = (rotate(y.astype(jnp.float32), *rope).astype(v.dtype) for y in (q, k))
        x_ISW = x_ISW + self.proj(attend(q, k, v, visible))
        x_ISW = x_ISW + self.fc2(jax.nn.gelu(self.fc1(self.norm2(x_ISW)), approximate=True))
        return constrain(x_ISW, "batch", None, None)


class Merger(nnx.Module):
    """Norm per patch, then four neighbours concatenated through a two-layer MLP with exact (erf) GELU."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        merged = config.hidden_size * config.spatial_merge_size**2
        self.norm = LayerNorm(rngs, config.hidden_size)
        self.fc1 = Linear(rngs, merged, merged, ("vision_embed", "vision_mlp"), bias=True)
        self.fc2 = Linear(rngs, merged, config.out_hidden_size, ("vision_mlp", "embed"), bias=True)

    def __call__(self, x_ISW: jax.Array) -> jax.Array:
        merged_IMW = self.norm(x_ISW).reshape(x_ISW.shape[0], -1, self.fc1.kernel.shape[0])
        return self.fc2(jax.nn.gelu(self.fc1(merged_IMW), approximate=False))


class PatchEmbed(nnx.Module):
    """The Conv3d whose stride is its kernel, as a matrix product, and the table of learned positions."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        self.proj = Linear(rngs, config.patch_dim, config.hidden_size, (None, "vision_embed"), bias=True)
        self.position = weight(
            rngs, (config.num_position_embeddings, config.hidden_size), (None, "vision_embed"), "embedding"
        )


_PARTS = {"patch": PatchEmbed, "merger": Merger}


def abstract(config: VisionConfig) -> Params:
    """The shapes of all parameters; blocks are stacked along a leading depth axis."""
    parts = {name: layers.abstract(build, config) for name, build in _PARTS.items()}
    return parts | {"blocks": layers.abstract(VisionBlock, config, (config.depth,))}


def init(config: VisionConfig, key: jax.Array) -> Params:
    """Initialises all parameters at random."""
    keys = jax.random.split(key, 3)
    parts = {name: layers.init(build, config, part) for (name, build), part in zip(_PARTS.items(), keys, strict=False)}
    return parts | {"blocks": layers.init(VisionBlock, config, keys[2], (config.depth,))}


def logical_axes(config: VisionConfig) -> Params:
    """The logical names of the axes of all parameters, without the leading layer axis."""
    return _of_all(layers.logical_axes, config)


def num_inputs(config: VisionConfig) -> Params:
    """The number of input axes of each kernel, without the leading layer axis; 0 for all other parameters."""
    return _of_all(layers.num_inputs, config)


def _of_all(declared: Callable[..., Params], config: VisionConfig) -> Params:
    parts = {name: declared(build, config) for name, build in _PARTS.items()}
    return parts | {"blocks": declared(VisionBlock, config)}


def _interpolated_positions(table: jax.Array, side: int, grid_IS5: jax.Array) -> jax.Array:
    """Samples the learned side x side table bilinearly (corners aligned), stretched over each frame's grid."""

    def taps(index_IS: jax.Array, size_IS: jax.Array):
        source = index_IS * (side - 1) / jnp.maximum(size_IS - 1, 1)
        low = jnp.clip(jnp.floor(source).astype(jnp.int32), 0, side - 1)
        return low, jnp.minimum(low + 1, side - 1), (source - low)[..., None]

    row_low, row_high, row_part = taps(grid_IS5[..., 1], grid_IS5[..., 3])
    col_low, col_high, col_part = taps(grid_IS5[..., 2], grid_IS5[..., 4])
    table = constrain(table, None, None).astype(jnp.float32)
    top = table[row_low * side + col_low] * (1 - col_part) + table[row_low * side + col_high] * col_part
    bottom = table[row_high * side + col_low] * (1 - col_part) + table[row_high * side + col_high] * col_part
    return top * (1 - row_part) + bottom * row_part


def _own_frame(frame_IS: jax.Array) -> Visible:
    """The slots that a patch sees: the patches of its own frame; padding (frame 0) sees padding."""
    num_slots = frame_IS.shape[1]
    padded = jnp.pad(frame_IS, [(0, 0), (0, -num_slots % QUERY_BLOCK)])

    def visible(start: jax.Array | int, length: int) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(padded, start, length, axis=1)[:, :, None] == frame_IS[:, None, :]

    return visible


def encode(
    params: Params, config: VisionConfig, patches_ISC: jax.Array, grid_IS5: jax.Array, remat: Remat = "none"
) -> jax.Array:
    """Computes features [I, M, D] of packed frames.

    `grid_IS5` int32 gives for each slot (number of its frame, row, column, height, width), the last four in patches of
    that frame; frames are numbered from 1 in each row, and 0 marks padding.
    """
    head_dim = config.hidden_size // config.num_heads
    frequency = layers.rotary_frequencies(head_dim // 2, 10000.0)
    angle = jnp.concatenate([grid_IS5[..., axis, None] * frequency for axis in (1, 2)], axis=-1)
    rope, visible = (jnp.cos(angle), jnp.sin(angle)), _own_frame(grid_IS5[..., 0])
    embed = layers.bind(PatchEmbed, config, params["patch"])
    x_ISW = embed.proj(patches_ISC.astype(embed.proj.kernel.dtype))
    positions = _interpolated_positions(embed.position[...], config.grid_side, grid_IS5)
    x_ISW = constrain(x_ISW + positions.astype(x_ISW.dtype), "batch", None, None)

    def block(x, weights):
        return layers.bind(VisionBlock, config, weights)(x, rope, visible), None

    x_ISW, _ = jax.lax.scan(jax.checkpoint(block) if remat != "none" else block, x_ISW, params["blocks"])
    return constrain(layers.bind(Merger, config, params["merger"])(x_ISW), "batch", None, None)
