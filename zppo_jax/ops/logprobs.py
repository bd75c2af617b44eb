"""Log-probabilities of given tokens from hidden states, without the logits of a large vocabulary.

The rows of the head are read chunk by chunk: forward, the scores of a chunk are folded into running sums (Milakov and
Gimelshein, arXiv:1805.02867); backward, they are computed anew, and the gradient of the chunk is written where its rows
lie. On a mesh each device does this for its own part of the vocabulary and its own positions, as the table of
`parallel.rules` cuts them, and the sums of the parts are joined at the end.

Shape suffixes: X positions (any leading axes), N positions on one axis, D model, V vocabulary, C a chunk of it, K the
likeliest tokens. In functions named `_local`, N, V and D are what one device holds.
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
"""Float32 logits up to this size (on a device) are kept for the backward pass, whole. Computed anew, they are a fourth
product beside three: a fifth more time on a CPU (benchmarks/README.md, "Log-probabilities")."""

CHUNK_BYTES = 2**25
"""Larger logits are read in chunks of about this size, of which two are held at a time."""

LEAST_ROWS = 2048
"""Of a chunk, for many positions: every chunk adds to the float32 gradient of all hidden states, which with fewer rows
would cost more than the products."""

_EMPTY = -1e30
"""Stands for the maximum of no scores: finite, because a difference of two infinities is not a number."""


def scaled_logits(logits_XV: jax.Array, temperature: jax.Array | float, banned_V: ArrayLike) -> jax.Array:
    """Logits in float32 at a temperature (0 counts as 1), banned ids at minus infinity.

    The sampler and the trainer both start from this, so that their distributions are the same function of the logits.
    """
    scale = jnp.where(jnp.asarray(temperature) == 0.0, 1.0, temperature)
    return jnp.where(banned_V, NEGATIVE, logits_XV.astype(jnp.float32) / scale)


def target_logprobs(
    hidden_XD: jax.Array,
    head_VD: jax.Array,
    target_X: jax.Array,
    temperature: float,
    banned_V: ArrayLike,
    chunk: int | None = None,
) -> jax.Array:
    """log softmax(hidden @ head^T / temperature)[target] over the ids that are not banned, float32 [X].

    A banned target has minus infinity, and its position no gradient. Products are summed in float32 whatever the dtype
    of the model. `chunk` rows of the head are read at a time; None takes them all, and keeps their logits for the
    backward pass, where these are small (KEPT_BYTES a device), and else as many as CHUNK_BYTES allow.
    """
    plan = _plan(hidden_XD, head_VD, temperature, chunk)
    hidden_ND, target_N = hidden_XD.reshape(-1, hidden_XD.shape[-1]), target_X.reshape(-1)
    logprobs_N: jax.Array = _target_logprobs(plan, hidden_ND, head_VD, target_N, jnp.asarray(banned_V))
    return logprobs_N.reshape(target_X.shape)


class Statistics(NamedTuple):
    """Of a distribution: its entropy in nats, and its likeliest tokens with their log-probabilities, best first."""

    entropy_X: jax.Array
    top_logprobs_XK: jax.Array
    top_ids_XK: jax.Array


def statistics(
    hidden_XD: jax.Array,
    head_VD: jax.Array,
    temperature: float,
    banned_V: ArrayLike,
    top_k: int = 1,
    chunk: int | None = None,
) -> Statistics:
    """Entropy and the `top_k` likeliest tokens of the distributions that `target_logprobs` reads; without gradients.

    Of equal scores the lower id comes first. Where fewer ids are allowed, the rest of the K are -1 at minus infinity.
    """
    plan = _plan(hidden_XD, head_VD, temperature, chunk)
    hidden_ND, head_VD = lax.stop_gradient((hidden_XD.reshape(-1, hidden_XD.shape[-1]), head_VD))
    local = functools.partial(_local_statistics, plan, top_k)
    inputs, outputs = (plan.hidden, plan.head, plan.banned), (plan.values, plan.values, plan.values)
    found = parallel.on_parts(local, inputs, outputs)(hidden_ND, head_VD, jnp.asarray(banned_V))
    return Statistics(*(value.reshape(*hidden_XD.shape[:-1], *value.shape[1:]) for value in found))


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is known before anything runs: the temperature, rows of the head at a time, whether logits are kept, and the
    mesh axes that cut positions, vocabulary and width (none without a mesh: every exchange is then the identity)."""

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


def _plan(hidden_XD: jax.Array, head_VD: jax.Array, temperature: float, chunk: int | None) -> _Plan:
    num_positions, (num_rows, width) = math.prod(hidden_XD.shape[:-1]), head_VD.shape
    positions, own_positions = parallel.cut("batch", num_positions)
    vocabulary, own_rows = parallel.cut("vocab", num_rows)
    width_axes, _ = parallel.cut("embed", width)
    # A chunk's gradient is summed over positions and cut by width in one exchange, which needs both on the same axes.
    # Where positions do not divide, the head is gathered whole.
    width_axes = width_axes if set(width_axes) <= set(positions) else ()
    chunk = min(chunk or chunk_rows(own_positions, own_rows), own_rows)
    return _Plan(temperature, chunk, chunk == own_rows, positions, vocabulary, width_axes)


def chunk_rows(num_positions: int, num_rows: int) -> int:
    """How many of a device's `num_rows` rows of the head are read at a time: all, or chunks of nearly equal sizes.

    These are odd multiples of 128: of 128 for the lanes of a TPU, odd because a CPU's caches have room for few lines
    that lie a power of two apart (4,224 rows are 10 % faster than 4,096).
    """
    row_bytes = 4 * num_positions
    if row_bytes * num_rows <= KEPT_BYTES:
        return num_rows
    num_chunks = math.ceil(num_rows / max(CHUNK_BYTES // row_bytes, LEAST_ROWS))
    return 128 * (math.ceil(num_rows / num_chunks / 128) | 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _target_logprobs(plan: _Plan, hidden_ND, head_VD, target_N, banned_V) -> jax.Array:
    return _forward(plan, hidden_ND, head_VD, target_N, banned_V)[0]


def _forward(plan: _Plan, hidden_ND, head_VD, target_N, banned_V):
    inputs = (plan.hidden, plan.head, plan.values, plan.banned)
    outputs = (plan.values, (plan.values, plan.values), plan.kept)
    local = parallel.on_parts(functools.partial(_local_forward, plan), inputs, outputs)
    logprobs_N, norm, kept = local(hidden_ND, head_VD, target_N, banned_V)
    return logprobs_N, (hidden_ND, head_VD, target_N, banned_V, norm, kept)


def _backward(plan: _Plan, saved, cotangent_N):
    hidden_ND, head_VD, target_N, banned_V, norm, kept = saved
    scale = 1.0 if plan.temperature == 0.0 else plan.temperature
    cotangent_N = jnp.where(jnp.take(banned_V, target_N), 0.0, cotangent_N) / scale
    inputs = (plan.hidden, plan.head, plan.values, plan.banned, (plan.values, plan.values), plan.kept, plan.values)
    local = parallel.on_parts(functools.partial(_local_backward, plan), inputs, (plan.hidden, plan.head))
    return *local(hidden_ND, head_VD, target_N, banned_V, norm, kept, cotangent_N), None, None


_target_logprobs.defvjp(_forward, _backward)


def _local_forward(plan: _Plan, hidden_ND, head_VD, target_N, banned_V):
    kept = [_product("nd,cd->nc", hidden_ND, _rows(plan, head_VD, 0))] if plan.keep else []
    target_N = target_N - _first_id(plan, head_VD)

    def fold(start, own_C, carry):
        sums, chosen_N = carry
        scores_NC = _scores(plan, hidden_ND, _rows(plan, head_VD, start), banned_V, start, own_C, kept)
        at_N = target_N - start
        there_N = jnp.take_along_axis(scores_NC, jnp.clip(at_N, 0, plan.chunk - 1)[:, None], axis=1)[:, 0]
        there_N = jnp.where((at_N >= 0) & (at_N < plan.chunk), there_N, NEGATIVE)
        return _add(sums, scores_NC), jnp.maximum(chosen_N, there_N)

    nothing = _no_sums(len(hidden_ND)), jnp.full(len(hidden_ND), NEGATIVE, jnp.float32)
    sums, chosen_N = _over_chunks(len(head_VD), plan.chunk, fold, nothing)
    sums, chosen_N = _joined(plan, sums), lax.pmax(chosen_N, plan.vocabulary)
    # Two numbers, not their sum: beside a score of 10,000 the logarithm would lose three digits.
    norm = sums.max_N, jnp.log(sums.total_N)
    return chosen_N - norm[0] - norm[1], norm, kept


def _local_backward(plan: _Plan, hidden_ND, head_VD, target_N, banned_V, norm, kept, cotangent_N):
    # Without the barrier the compiler shares `scores - maximum` with the forward pass, and writes it down for that.
    max_N1, log_total_N1, cotangent_N1 = (value[:, None] for value in (*lax.optimization_barrier(norm), cotangent_N))
    target_N1 = (target_N - _first_id(plan, head_VD))[:, None]

    def fold(start, own_C, carry):
        hidden_gradient_ND, head_gradient_VD = carry
        rows_CD = _rows(plan, head_VD, start)
        scores_NC = _scores(plan, hidden_ND, rows_CD, banned_V, start, own_C, kept)
        probability_NC = jnp.exp(scores_NC - max_N1 - log_total_N1)
        is_target_NC = own_C & (start + jnp.arange(plan.chunk) == target_N1)
        slope_NC = ((is_target_NC - probability_NC) * cotangent_N1).astype(hidden_ND.dtype)
        part_CD = _summed(plan, _product("nc,nd->cd", slope_NC, hidden_ND)).astype(head_VD.dtype)
        return (
            hidden_gradient_ND + _product("nc,cd->nd", slope_NC, rows_CD),
            lax.dynamic_update_slice_in_dim(head_gradient_VD, part_CD, start, axis=0),
        )

    nothing = jnp.zeros(hidden_ND.shape, jnp.float32), lax.empty(head_VD.shape, head_VD.dtype)
    hidden_gradient_ND, head_gradient_VD = _over_chunks(len(head_VD), plan.chunk, fold, nothing)
    return lax.psum(hidden_gradient_ND, plan.vocabulary).astype(hidden_ND.dtype), head_gradient_VD


def _local_statistics(plan: _Plan, top_k: int, hidden_ND, head_VD, banned_V):
    def fold(start, own_C, carry):
        sums, moment_N, top = carry
        scores_NC = _scores(plan, hidden_ND, _rows(plan, head_VD, start), banned_V, start, own_C, [])
        ids_NC = jnp.broadcast_to(_first_id(plan, head_VD) + start + jnp.arange(plan.chunk), scores_NC.shape)
        more = _add(sums, scores_NC)
        moment_N = _moved(moment_N, sums, more.max_N) + _moment(scores_NC, more.max_N)
        return more, moment_N, _likeliest(top_k, (scores_NC, ids_NC), top)

    num_positions = len(hidden_ND)
    none = jnp.full((num_positions, top_k), NEGATIVE), jnp.full((num_positions, top_k), -1)
    nothing = _no_sums(num_positions), jnp.zeros(num_positions), none
    sums, moment_N, top = _over_chunks(len(head_VD), plan.chunk, fold, nothing)
    whole = _joined(plan, sums)
    moment_N = lax.psum(_moved(moment_N, sums, whole.max_N), plan.vocabulary)
    scores_NK, ids_NK = _likeliest(top_k, lax.all_gather(top, plan.vocabulary, axis=1, tiled=True))
    logprobs_NK = scores_NK - whole.max_N[:, None] - jnp.log(whole.total_N)[:, None]
    entropy_N = jnp.log(whole.total_N) - moment_N / whole.total_N
    return entropy_N, logprobs_NK, jnp.where(scores_NK > NEGATIVE, ids_NK, -1)


def _over_chunks(num_rows: int, chunk: int, fold: Callable[..., Any], carry: Any) -> Any:
    """`carry = fold(start, own_C, carry)` for chunks of rows, from the last to the first.

    All have one size, so the last may begin among rows of the one before: those are not its own. That one comes after
    it, so what it writes for them holds.
    """
    num_chunks = math.ceil(num_rows / chunk)

    def step(turn, carry):
        first = (num_chunks - 1 - turn) * chunk
        start = jnp.minimum(first, num_rows - chunk)
        return fold(start, start + jnp.arange(chunk) >= first, carry)

    return lax.fori_loop(0, num_chunks, step, carry) if num_chunks > 1 else step(0, carry)


def _rows(plan: _Plan, head_VD: jax.Array, start: ArrayLike) -> jax.Array:
    """A chunk of the head in its whole width."""
    rows_CD = lax.dynamic_slice_in_dim(head_VD, start, plan.chunk)
    return lax.all_gather(rows_CD, plan.width, axis=1, tiled=True)


def _first_id(plan: _Plan, head_VD: jax.Array) -> jax.Array:
    """The token of the first row on this device."""
    return lax.axis_index(plan.vocabulary) * len(head_VD)


def _scores(plan: _Plan, hidden_ND, rows_CD, banned_V, start: ArrayLike, own_C, kept: list[jax.Array]) -> jax.Array:
    """Of a chunk's own rows; minus infinity for the others."""
    logits_NC = kept[0] if kept else _product("nd,cd->nc", hidden_ND, rows_CD)
    banned_C = lax.dynamic_slice_in_dim(banned_V, start, plan.chunk)
    return scaled_logits(logits_NC, plan.temperature, banned_C | ~own_C)


_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _summed(plan: _Plan, part_CD: jax.Array) -> jax.Array:
    """A chunk's gradient summed over the devices with other positions, cut by width as the head is."""
    part_CD = lax.psum_scatter(part_CD, plan.width, scatter_dimension=1, tiled=True)
    return lax.psum(part_CD, tuple(axis for axis in plan.positions if axis not in plan.width))


class _Sums(NamedTuple):
    """Of scores x so far: their maximum m, and the sum of e^(x - m)."""

    max_N: jax.Array
    total_N: jax.Array


def _no_sums(num_positions: int) -> _Sums:
    return _Sums(jnp.full(num_positions, _EMPTY), jnp.zeros(num_positions))


def _add(sums: _Sums, scores_NC: jax.Array) -> _Sums:
    max_N = jnp.maximum(sums.max_N, jnp.max(scores_NC, axis=1))
    total_N = jnp.sum(jnp.exp(scores_NC - max_N[:, None]), axis=1)
    return _Sums(max_N, sums.total_N * jnp.exp(sums.max_N - max_N) + total_N)


def _joined(plan: _Plan, sums: _Sums) -> _Sums:
    """The sums of all parts of the vocabulary."""
    max_N = lax.pmax(sums.max_N, plan.vocabulary)
    return _Sums(max_N, lax.psum(sums.total_N * jnp.exp(sums.max_N - max_N), plan.vocabulary))


def _moment(scores_NC: jax.Array, max_N: jax.Array) -> jax.Array:
    """The sum of e^(x - m) (x - m), to which a score of minus infinity adds nothing."""
    below_NC = scores_NC - max_N[:, None]
    return jnp.sum(jnp.where(scores_NC > NEGATIVE, jnp.exp(below_NC) * below_NC, 0.0), axis=1)


def _moved(moment_N: jax.Array, sums: _Sums, max_N: jax.Array) -> jax.Array:
    """The moment about another maximum than that of `sums`, no smaller."""
    shift_N = sums.max_N - max_N
    return (moment_N + sums.total_N * shift_N) * jnp.exp(shift_N)


def _likeliest(top_k: int, *candidates: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The best of (scores, ids), both [N, any]; earlier ones first where they are equal."""
    scores_NA, ids_NA = (jnp.concatenate(arrays, axis=1) for arrays in zip(*candidates, strict=True))
    best_NK, at_NK = lax.top_k(scores_NA, top_k)
    return best_NK, jnp.take_along_axis(ids_NA, at_NK, axis=1)
