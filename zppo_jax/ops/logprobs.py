"""Log-probabilities of given tokens from hidden states, without the logits of a large vocabulary (vocabulary.py).

In the backward pass the scores of a chunk are recomputed, and the chunk's gradient is written into its rows.

Shape suffixes: X positions (any leading axes), N positions on one axis, D model, V vocabulary, C a chunk of it. In
functions named `_local`, N, V and D are the sizes on one device.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from zppo_jax import parallel
from zppo_jax.ops import vocabulary
from zppo_jax.ops.vocabulary import NEGATIVE, Plan


def target_logprobs(
    hidden_XD: jax.Array,
    head_VD: jax.Array,
    target_X: jax.Array,
    temperature: float,
    banned_V: ArrayLike,
    chunk: int | None = None,
) -> jax.Array:
    """log softmax(hidden @ head^T / temperature)[target] over the ids that are not banned, float32 [X].

    A banned target gets minus infinity, and its position no gradient. Products are summed in float32 whatever the dtype
    of the model. `chunk` rows of the head are read at a time. None: all rows, with their logits kept for the backward
    pass, if these are small (KEPT_BYTES per device); otherwise as many rows as CHUNK_BYTES allow.
    """
    plan = vocabulary.plan_of(hidden_XD, head_VD, temperature, chunk)
    hidden_ND, target_N = hidden_XD.reshape(-1, hidden_XD.shape[-1]), target_X.reshape(-1)
    logprobs_N: jax.Array = _target_logprobs(plan, hidden_ND, head_VD, target_N, jnp.asarray(banned_V))
    return logprobs_N.reshape(target_X.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _target_logprobs(plan: Plan, hidden_ND, head_VD, target_N, banned_V) -> jax.Array:
    return _forward(plan, hidden_ND, head_VD, target_N, banned_V)[0]


def _forward(plan: Plan, hidden_ND, head_VD, target_N, banned_V):
    inputs = (plan.hidden, plan.head, plan.values, plan.banned)
    outputs = (plan.values, (plan.values, plan.values), plan.kept)
    local = parallel.on_parts(functools.partial(_local_forward, plan), inputs, outputs)
    logprobs_N, norm, kept = local(hidden_ND, head_VD, target_N, banned_V)
    return logprobs_N, (hidden_ND, head_VD, target_N, banned_V, norm, kept)


def _backward(plan: Plan, saved, cotangent_N):
    hidden_ND, head_VD, target_N, banned_V, norm, kept = saved
    scale = 1.0 if plan.temperature == 0.0 else plan.temperature
    cotangent_N = jnp.where(jnp.take(banned_V, target_N), 0.0, cotangent_N) / scale
    inputs = (plan.hidden, plan.head, plan.values, plan.banned, (plan.values, plan.values), plan.kept, plan.values)
    local = parallel.on_parts(functools.partial(_local_backward, plan), inputs, (plan.hidden, plan.head))
    return *local(hidden_ND, head_VD, target_N, banned_V, norm, kept, cotangent_N), None, None


_target_logprobs.defvjp(_forward, _backward)


def _local_forward(plan: Plan, hidden_ND, head_VD, target_N, banned_V):
    kept = [vocabulary.product("nd,cd->nc", hidden_ND, vocabulary.rows(plan, head_VD, 0))] if plan.keep else []
    target_N = target_N - vocabulary.first_id(plan, head_VD)

    def fold(start, own_C, carry):
        sums, chosen_N = carry
        scores_NC = vocabulary.scores(
            plan, hidden_ND, vocabulary.rows(plan, head_VD, start), banned_V, start, own_C, kept
        )
        at_N = target_N - start
        there_N = jnp.take_along_axis(scores_NC, jnp.clip(at_N, 0, plan.chunk - 1)[:, None], axis=1)[:, 0]
        there_N = jnp.where((at_N >= 0) & (at_N < plan.chunk), there_N, NEGATIVE)
        return vocabulary.add(sums, scores_NC), jnp.maximum(chosen_N, there_N)

    nothing = vocabulary.no_sums(len(hidden_ND)), jnp.full(len(hidden_ND), NEGATIVE, jnp.float32)
    sums, chosen_N = vocabulary.over_chunks(len(head_VD), plan.chunk, fold, nothing)
    sums, chosen_N = vocabulary.joined(plan, sums), lax.pmax(chosen_N, plan.vocabulary)
    # Two numbers, not their sum: next to a score of 10,000 the logarithm would lose three digits.
    norm = sums.max_N, jnp.log(sums.total_N)
    return chosen_N - norm[0] - norm[1], norm, kept


def _local_backward(plan: Plan, hidden_ND, head_VD, target_N, banned_V, norm, kept, cotangent_N):
    # Without the barrier the compiler shares `scores - maximum` with the forward pass, and stores it in memory for
    # that.
    max_N1, log_total_N1, cotangent_N1 = (value[:, None] for value in (*lax.optimization_barrier(norm), cotangent_N))
    target_N1 = (target_N - vocabulary.first_id(plan, head_VD))[:, None]

    def fold(start, own_C, carry):
        hidden_gradient_ND, head_gradient_VD = carry
        rows_CD = vocabulary.rows(plan, head_VD, start)
        scores_NC = vocabulary.scores(plan, hidden_ND, rows_CD, banned_V, start, own_C, kept)
        probability_NC = jnp.exp(scores_NC - max_N1 - log_total_N1)
        is_target_NC = own_C & (start + jnp.arange(plan.chunk) == target_N1)
        slope_NC = ((is_target_NC - probability_NC) * cotangent_N1).astype(hidden_ND.dtype)
        part_CD = _summed(plan, vocabulary.product("nc,nd->cd", slope_NC, hidden_ND)).astype(head_VD.dtype)
        return (
            hidden_gradient_ND + vocabulary.product("nc,cd->nd", slope_NC, rows_CD),
            lax.dynamic_update_slice_in_dim(head_gradient_VD, part_CD, start, axis=0),
        )

    nothing = jnp.zeros(hidden_ND.shape, jnp.float32), lax.empty(head_VD.shape, head_VD.dtype)
    hidden_gradient_ND, head_gradient_VD = vocabulary.over_chunks(len(head_VD), plan.chunk, fold, nothing)
    return lax.psum(hidden_gradient_ND, plan.vocabulary).astype(hidden_ND.dtype), head_gradient_VD


def _summed(plan: Plan, part_CD: jax.Array) -> jax.Array:
    """Sums a chunk's gradient over the devices with other positions; the result is cut by width, as the head is."""
    part_CD = lax.psum_scatter(part_CD, plan.width, scatter_dimension=1, tiled=True)
    return lax.psum(part_CD, tuple(axis for axis in plan.positions if axis not in plan.width))
