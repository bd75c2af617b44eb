"""Reads the head of a large vocabulary chunk by chunk, without the logits of all positions.

The scores of each chunk of rows are folded into running sums (Milakov and Gimelshein, arXiv:1805.02867). On a mesh each
device does this for its own part of the vocabulary and its own positions, as the table of `parallel.rules` cuts them,
and the sums of the parts are joined at the end.

Shape suffixes: X positions (any leading axes), N positions on one axis, D model, V vocabulary, C a chunk of it. In
functions that take a `Plan`, N, V and D are the sizes on one device.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from zppo_jax import parallel

NEGATIVE = float("-inf")

KEPT_BYTES = 2**29
"""Float32 logits up to this size (on a device) are kept whole for the backward pass. Recomputing them would be a fourth
product besides three: a fifth more time on a CPU (benchmarks/README.md, "Log-probabilities")."""

CHUNK_BYTES = 2**25
"""Larger logits are read in chunks of about this size, of which two are held at a time."""

LEAST_ROWS = 2048
"""The least number of rows in a chunk for many positions: every chunk adds to the float32 gradient of all hidden
states, which with fewer rows would cost more than the products."""

_EMPTY = -1e30
"""The maximum of no scores: finite, because a difference of two infinities is not a number."""


def scaled_logits(logits_XV: jax.Array, temperature: jax.Array | float, banned_V: ArrayLike) -> jax.Array:
    """Scales logits to a temperature, in float32 (0 counts as 1), with banned ids at minus infinity.

    The sampler and the trainer both start from this, so that their distributions are the same function of the logits.
    """
    scale = jnp.where(jnp.asarray(temperature) == 0.0, 1.0, temperature)
    return jnp.where(banned_V, NEGATIVE, logits_XV.astype(jnp.float32) / scale)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static settings: the temperature, the rows of the head at a time, whether logits are kept, and the mesh axes
    that cut positions, vocabulary and width (none without a mesh: every exchange is then the identity)."""

    temperature: float
    chunk: int
    keep: bool
    positions: parallel.MeshAxes
    vocabulary: parallel.MeshAxes
    width: parallel.MeshAxes

    @property
    def hidden(self) -> P:
        return P(self.positions, None)

    @property
    def head(self) -> P:
        return P(self.vocabulary, self.width)

    @property
    def values(self) -> P:
        return P(self.positions)

    @property
    def banned(self) -> P:
        return P(self.vocabulary)

    @property
    def kept(self) -> list[P]:
        return [P(self.positions, self.vocabulary)] if self.keep else []


def plan_of(hidden_XD: jax.Array, head_VD: jax.Array, temperature: float, chunk: int | None) -> Plan:
    """Makes the plan for these shapes on the mesh in use."""
    num_positions, (num_rows, width) = math.prod(hidden_XD.shape[:-1]), head_VD.shape
    positions, own_positions = parallel.cut("batch", num_positions)
    vocabulary, own_rows = parallel.cut("vocab", num_rows)
    width_axes, _ = parallel.cut("embed", width)
    # A chunk's gradient is summed over positions and cut by width in one exchange, which needs both on the same axes.
    # If positions do not divide, the head is gathered whole.
    width_axes = width_axes if set(width_axes) <= set(positions) else ()
    chunk = min(chunk or chunk_rows(own_positions, own_rows), own_rows)
    return Plan(temperature, chunk, chunk == own_rows, positions, vocabulary, width_axes)


def chunk_rows(num_positions: int, num_rows: int) -> int:
    """The number of a device's `num_rows` rows of the head to read at a time: all, or chunks of nearly equal sizes.

    Sizes are odd multiples of 128: of 128 for the lanes of a TPU, odd because a CPU's caches hold few lines that are a
    power of two apart (4,224 rows are 10 % faster than 4,096).
    """
    row_bytes = 4 * num_positions
    if row_bytes * num_rows <= KEPT_BYTES:
        return num_rows
    num_chunks = math.ceil(num_rows / max(CHUNK_BYTES // row_bytes, LEAST_ROWS))
    return 128 * (math.ceil(num_rows / num_chunks / 128) | 1)


def over_chunks(num_rows: int, chunk: int, fold: Callable[..., Any], carry: Any) -> Any:
    """Folds chunks of rows, from the last to the first: `carry = fold(start, own_C, carry)`.

    All chunks have one size, so the last may overlap the one before it; `own_C` excludes the shared rows there. The
    other chunk comes later, so its values for these rows remain.
    """
    num_chunks = math.ceil(num_rows / chunk)

    def step(turn, carry):
        first = (num_chunks - 1 - turn) * chunk
        start = jnp.minimum(first, num_rows - chunk)
        return fold(start, start + jnp.arange(chunk) >= first, carry)

    return lax.fori_loop(0, num_chunks, step, carry) if num_chunks > 1 else step(0, carry)


def rows(plan: Plan, head_VD: jax.Array, start: ArrayLike) -> jax.Array:
    """Gathers a chunk of the head in its whole width."""
    rows_CD = lax.dynamic_slice_in_dim(head_VD, start, plan.chunk)
    return lax.all_gather(rows_CD, plan.width, axis=1, tiled=True)


def first_id(plan: Plan, head_VD: jax.Array) -> jax.Array:
    """The token id of the first row on this device."""
    return lax.axis_index(plan.vocabulary) * len(head_VD)


def scores(plan: Plan, hidden_ND, rows_CD, banned_V, start: ArrayLike, own_C, kept: list[jax.Array]) -> jax.Array:
    """The scores of a chunk's own rows; minus infinity for rows that it shares with another chunk."""
    logits_NC = kept[0] if kept else product("nd,cd->nc", hidden_ND, rows_CD)
    banned_C = lax.dynamic_slice_in_dim(banned_V, start, plan.chunk)
    return scaled_logits(logits_NC, plan.temperature, banned_C | ~own_C)


product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


class Sums(NamedTuple):
    """Running sums over scores x: their maximum m, and the sum of e^(x - m)."""

    max_N: jax.Array
    total_N: jax.Array


def no_sums(num_positions: int) -> Sums:
    """The sums over no score."""
    return Sums(jnp.full(num_positions, _EMPTY), jnp.zeros(num_positions))


def add(sums: Sums, scores_NC: jax.Array) -> Sums:
    """Adds a chunk's scores to the sums."""
    max_N = jnp.maximum(sums.max_N, jnp.max(scores_NC, axis=1))
    total_N = jnp.sum(jnp.exp(scores_NC - max_N[:, None]), axis=1)
    return Sums(max_N, sums.total_N * jnp.exp(sums.max_N - max_N) + total_N)


def joined(plan: Plan, sums: Sums) -> Sums:
    """Joins the sums of all parts of the vocabulary."""
    max_N = lax.pmax(sums.max_N, plan.vocabulary)
    return Sums(max_N, lax.psum(sums.total_N * jnp.exp(sums.max_N - max_N), plan.vocabulary))
