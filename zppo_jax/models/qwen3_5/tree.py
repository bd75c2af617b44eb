"""Rows with each prompt once, before all its responses: a trunk and its branches, one tree after the other.

A branch sees its trunk and itself; it starts from the delta rule's state at the trunk's end. So a group of rollouts
costs its prompt once, and rows of one length hold groups of any lengths. Every trunk and branch fills whole chunks (a
static number of tokens), with pads only at its end.

Shape suffixes: B rows, T tokens, C chunks, J convolution context.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

AXES = {
    "segment_BT": ("batch", None),
    "trunk_BT": ("batch", None),
    "source_BC": ("batch", None),
    "is_trunk_BC": ("batch", None),
    "context_BCJ": ("batch", None, None),
}


class Tree(NamedTuple):
    """The structure of rows of trees: the trunk that each branch continues.

    segment_BT int32: number of the trunk or branch within its row, from 1; 0 after the last. trunk_BT int32: number of
    the trunk that it belongs to; a trunk belongs to itself. source_BC int32 and is_trunk_BC bool: see
    ops.gated_delta.gated_delta_tree. context_BCJ int32: the slots of the last J tokens before a chunk, -1 for none.
    """

    segment_BT: Any
    trunk_BT: Any
    source_BC: Any
    is_trunk_BC: Any
    context_BCJ: Any

    def before(self, x_BT: jax.Array) -> jax.Array:
        """Gathers the inputs before each chunk, [B * C, J, *channels]; zeros if there are none."""
        num_rows, num_chunks, size = self.context_BCJ.shape
        flat = x_BT.reshape(*x_BT.shape[:2], -1)
        index = jnp.maximum(self.context_BCJ, 0).reshape(num_rows, -1, 1)
        taken = jnp.take_along_axis(flat, index, axis=1).reshape(num_rows * num_chunks, size, *x_BT.shape[2:])
        there = (self.context_BCJ >= 0).reshape(num_rows * num_chunks, size, *(1,) * (x_BT.ndim - 2))
        return jnp.where(there, taken, 0)
