"""The vision tower: patches in merge-block order -> one feature per 2x2 block, frame by frame.

Attention never crosses a frame, so the tower runs over a batch of frames padded to the same number of patches; an
image is one frame, a video one frame for each temporal patch.

Shape suffixes: I frames, S patch slots, C patch values, W vision width, N heads, H head dim,
M merged slots (S / 4), D model.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from zppo_jax.models.qwen3_5 import layers
from zppo_jax.models.qwen3_5.attention import attend
from zppo_jax.models.qwen3_5.config import VisionConfig
from zppo_jax.models.qwen3_5.layers import LayerNorm, Linear, Params, rotate, weight


class VisionBlock(nnx.Module):
    """Pre-norm transformer block with biases, full attention inside a frame, tanh-GELU."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        width, inner = config.hidden_size, config.intermediate_size
        self.num_heads = config.num_heads
        self.norm1, self.norm2 = LayerNorm(rngs, width), LayerNorm(rngs, width)
        self.qkv = Linear(rngs, (width, 3 * width), ("vision_embed", "vision_heads"), bias=True)
        self.proj = Linear(rngs, (width, width), ("vision_heads", "vision_embed"), bias=True)
        self.fc1 = Linear(rngs, (width, inner), ("vision_embed", "vision_mlp"), bias=True)
        self.fc2 = Linear(rngs, (inner, width), ("vision_mlp", "vision_embed"), bias=True)

    def __call__(self, x_ISW: jax.Array, rope: tuple[jax.Array, jax.Array], mask_IS: jax.Array) -> jax.Array:
        frames, slots, width = x_ISW.shape
        q, k, v = jnp.split(self.qkv(self.norm1(x_ISW)), 3, axis=-1)
        q, k, v = (y.reshape(frames, slots, self.num_heads, width // self.num_heads) for y in (q, k, v))
        # Rotation in float32, as the reference does for vision (text rotates in the model dtype).
        q, k = (rotate(y.astype(jnp.float32), *rope).astype(v.dtype) for y in (q, k))
        mask_ISS = jnp.broadcast_to(mask_IS[:, None, :], (frames, slots, slots))
        x_ISW = x_ISW + self.proj(attend(q, k, v, mask_ISS).reshape(frames, slots, width))
        return x_ISW + self.fc2(jax.nn.gelu(self.fc1(self.norm2(x_ISW)), approximate=True))


class Merger(nnx.Module):
    """Norm per patch, then four neighbours concatenated through a two-layer MLP with exact (erf) GELU."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        merged = config.hidden_size * config.spatial_merge_size**2
        self.norm = LayerNorm(rngs, config.hidden_size)
        self.fc1 = Linear(rngs, (merged, merged), (None, "vision_mlp"), bias=True)
        self.fc2 = Linear(rngs, (merged, config.out_hidden_size), ("vision_mlp", "embed"), bias=True)

    def __call__(self, x_ISW: jax.Array) -> jax.Array:
        merged_IMW = self.norm(x_ISW).reshape(x_ISW.shape[0], -1, self.fc1.kernel.shape[0])
        return self.fc2(jax.nn.gelu(self.fc1(merged_IMW), approximate=False))


class PatchEmbed(nnx.Module):
    """The Conv3d whose stride is its kernel, as a matrix product, and the table of learned positions."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        self.proj = Linear(rngs, (config.patch_dim, config.hidden_size), (None, "vision_embed"), bias=True)
        self.position = weight(
            rngs, (config.num_position_embeddings, config.hidden_size), (None, "vision_embed"), "embedding"
        )


_PARTS = {"patch": PatchEmbed, "merger": Merger}


def abstract(config: VisionConfig) -> Params:
    """Shapes of all parameters; blocks are stacked along a leading depth axis."""
    parts = {name: layers.abstract(build, config) for name, build in _PARTS.items()}
    return parts | {"blocks": layers.abstract(VisionBlock, config, (config.depth,))}


def init(config: VisionConfig, key: jax.Array) -> Params:
    """Random parameters."""
    keys = jax.random.split(key, 3)
    parts = {name: layers.init(build, config, part) for (name, build), part in zip(_PARTS.items(), keys, strict=False)}
    return parts | {"blocks": layers.init(VisionBlock, config, keys[2], (config.depth,))}


def _interpolated_positions(table: jax.Array, side: int, row_IS: jax.Array, col_IS: jax.Array, size_I2: jax.Array):
    """Bilinear samples (corners aligned) of the learned side x side table, stretched over each frame's own grid."""

    def taps(index_IS: jax.Array, size_I: jax.Array):
        source = index_IS * (side - 1) / jnp.maximum(size_I[:, None] - 1, 1)
        low = jnp.clip(jnp.floor(source).astype(jnp.int32), 0, side - 1)
        return low, jnp.minimum(low + 1, side - 1), (source - low)[..., None]

    row_low, row_high, row_part = taps(row_IS, size_I2[:, 0])
    col_low, col_high, col_part = taps(col_IS, size_I2[:, 1])
    table = table.astype(jnp.float32)
    top = table[row_low * side + col_low] * (1 - col_part) + table[row_low * side + col_high] * col_part
    bottom = table[row_high * side + col_low] * (1 - col_part) + table[row_high * side + col_high] * col_part
    return top * (1 - row_part) + bottom * row_part


def _coordinates(size_I2: jax.Array, slots: int, merge: int) -> tuple[jax.Array, jax.Array]:
    """Row and column [I, S] of each patch slot in merge-block order."""
    slot_S = jnp.arange(slots)
    block_S, inside_S = slot_S // merge**2, slot_S % merge**2
    blocks_wide_I1 = jnp.maximum(size_I2[:, 1:] // merge, 1)
    row = block_S // blocks_wide_I1 * merge + inside_S // merge
    col = block_S % blocks_wide_I1 * merge + inside_S % merge
    return row, col


def encode(params: Params, config: VisionConfig, patches_ISC: jax.Array, size_I2: jax.Array) -> jax.Array:
    """Features [I, M, D] of frames whose patch grids are `size_I2` (height, width in patches).

    Slots at or beyond height * width are padding and never attended to; a frame of size 0 x 0 is all padding.
    """
    slots, head_dim = patches_ISC.shape[1], config.hidden_size // config.num_heads
    row_IS, col_IS = _coordinates(size_I2, slots, config.spatial_merge_size)
    mask_IS = jnp.arange(slots) < (size_I2[:, 0] * size_I2[:, 1])[:, None]
    frequency = layers.rotary_frequencies(head_dim // 2, 10000.0)
    angle = jnp.concatenate([row_IS[..., None] * frequency, col_IS[..., None] * frequency], axis=-1)
    rope = (jnp.cos(angle), jnp.sin(angle))
    embed = layers.bind(PatchEmbed, config, params["patch"])
    x_ISW = embed.proj(patches_ISC.astype(embed.proj.kernel.dtype))
    positions = _interpolated_positions(embed.position[...], config.grid_side, row_IS, col_IS, size_I2)
    x_ISW = x_ISW + positions.astype(x_ISW.dtype)

    def block(x, weights):
        return layers.bind(VisionBlock, config, weights)(x, rope, mask_IS), None

    x_ISW, _ = jax.lax.scan(block, x_ISW, params["blocks"])
    return layers.bind(Merger, config, params["merger"])(x_ISW)
