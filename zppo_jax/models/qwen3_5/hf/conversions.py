"""Conversions between a checkpoint's tensor and a parameter (or its slice) here, in both directions, with the shape.

Shape suffixes: C channels of all heads, X all other axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from zppo_jax.models.qwen3_5.config import Config, TextConfig


class Leaf(NamedTuple):
    """A parameter here, or the slice of a stacked one: its shape, and its number of input axes in a product."""

    shape: tuple[int, ...]
    num_inputs: int
    config: Config

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Conversion(NamedTuple):
    """`inward` and `outward` give all values in the other layout's order; the caller shapes them. `shape_there` is the
    shape of the checkpoint's tensor. `run` divides the length of each run of outputs that are neighbours in both
    layouts."""

    inward: Callable[[np.ndarray, Leaf], np.ndarray]
    outward: Callable[[np.ndarray, Leaf], np.ndarray]
    shape_there: Callable[[Leaf], tuple[int, ...]]
    run: Callable[[Leaf], int] = lambda leaf: leaf.shape[-1]


def _matrix_shape(leaf: Leaf) -> tuple[int, ...]:
    """The shape [outputs, inputs]."""
    inputs = math.prod(leaf.shape[: leaf.num_inputs])
    return leaf.size // inputs, inputs


def _conv1d_shape(leaf: Leaf) -> tuple[int, ...]:
    return math.prod(leaf.shape[1:]), 1, leaf.shape[0]


def _patch_shape(leaf: Leaf) -> tuple[int, ...]:
    vision = leaf.config.vision
    return leaf.shape[-1], vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size


def _transposed(value: np.ndarray, num_inputs: int) -> np.ndarray:
    """Turns our [*inputs, *outputs] into the matrix [outputs, inputs]."""
    return value.reshape(math.prod(value.shape[:num_inputs]), -1).T


def _heads_inward(rows_CX: np.ndarray, leaf: Leaf) -> np.ndarray:
    return _by_key_head(rows_CX, leaf.config.text).T


def _heads_outward(value: np.ndarray, leaf: Leaf) -> np.ndarray:
    return _one_behind_the_other(_transposed(value, 1), leaf.config.text)


def _widths(text: TextConfig) -> tuple[int, int, int]:
    """The numbers of rows of q, of k and of all v that belong to one key head."""
    return text.linear_key_head_dim, text.linear_key_head_dim, text.value_dim // text.linear_num_key_heads


def _by_key_head(rows_CX: np.ndarray, text: TextConfig) -> np.ndarray:
    """Reorders rows [all q | all k | all v] to [its q | its k | the v of its value heads] for each key head. A row may
    stand for several channels, as many as divide the run of each part."""
    per_row = text.conv_dim // len(rows_CX)
    parts = np.split(rows_CX, [text.key_dim // per_row, 2 * text.key_dim // per_row])
    heads = text.linear_num_key_heads
    blocks = [part.reshape(heads, -1, rows_CX.shape[1]) for part in parts]
    return np.concatenate(blocks, axis=1).reshape(rows_CX.shape)


def _one_behind_the_other(rows_CX: np.ndarray, text: TextConfig) -> np.ndarray:
    """The inverse of `_by_key_head`."""
    q, k, _ = _widths(text)
    blocks = np.split(rows_CX.reshape(text.linear_num_key_heads, -1, rows_CX.shape[1]), [q, q + k], axis=1)
    return np.concatenate([block.reshape(-1, rows_CX.shape[1]) for block in blocks])


COPY = Conversion(lambda tensor, _: tensor, lambda value, _: value, lambda leaf: leaf.shape)
BIAS = Conversion(lambda tensor, _: tensor, lambda value, _: value, lambda leaf: (leaf.size,))
"""A bias: flat there, with the axes of the outputs here."""
MATRIX = Conversion(lambda tensor, _: tensor.T, lambda value, leaf: _transposed(value, leaf.num_inputs), _matrix_shape)
"""A matrix: torch keeps [outputs, inputs]."""
QKV = Conversion(_heads_inward, _heads_outward, _matrix_shape, run=lambda leaf: math.gcd(*_widths(leaf.config.text)))
CONV1D = Conversion(lambda tensor, leaf: _heads_inward(tensor[:, 0], leaf), _heads_outward, _conv1d_shape)
"""A depthwise convolution over the channels of q, k and v: [C, 1, taps] there, [taps, C] here."""
PATCH = Conversion(
    lambda tensor, _: tensor.reshape(len(tensor), -1).T, lambda value, _: _transposed(value, 1), _patch_shape
)
"""A Conv3d whose stride is its kernel: a matrix here."""
