"""Entropy and the likeliest tokens of distributions over a large vocabulary (vocabulary.py), without gradients.

Shape suffixes: X positions (any leading axes), N positions on one axis, D model, V vocabulary, C a chunk of it, K the
likeliest tokens, A candidates for them. In functions named `_local`, N, V and D are what one device holds.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from zppo_jax import parallel
from zppo_jax.ops import vocabulary
from zppo_jax.ops.vocabulary import NEGATIVE, Plan, Sums


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
    plan = vocabulary.plan_of(hidden_XD, head_VD, temperature, chunk)
    hidden_ND, head_VD = lax.stop_gradient((hidden_XD.reshape(-1, hidden_XD.shape[-1]), head_VD))
    local = functools.partial(_local_statistics, plan, top_k)
    inputs, outputs = (plan.hidden, plan.head, plan.banned), (plan.values, plan.values, plan.values)
    found = parallel.on_parts(local, inputs, outputs)(hidden_ND, head_VD, jnp.asarray(banned_V))
    return Statistics(*(value.reshape(*hidden_XD.shape[:-1], *value.shape[1:]) for value in found))


def _local_statistics(plan: Plan, top_k: int, hidden_ND, head_VD, banned_V):
    def fold(start, own_C, carry):
        sums, moment_N, top = carry
        scores_NC = vocabulary.scores(
            plan, hidden_ND, vocabulary.rows(plan, head_VD, start), banned_V, start, own_C, []
        )
        ids_NC = jnp.broadcast_to(vocabulary.first_id(plan, head_VD) + start + jnp.arange(plan.chunk), scores_NC.shape)
        more = vocabulary.add(sums, scores_NC)
        moment_N = _moved(moment_N, sums, more.max_N) + _moment(scores_NC, more.max_N)
        return more, moment_N, _likeliest(top_k, (scores_NC, ids_NC), top)

    num_positions = len(hidden_ND)
    none = jnp.full((num_positions, top_k), NEGATIVE), jnp.full((num_positions, top_k), -1)
    nothing = vocabulary.no_sums(num_positions), jnp.zeros(num_positions), none
    sums, moment_N, top = vocabulary.over_chunks(len(head_VD), plan.chunk, fold, nothing)
    whole = vocabulary.joined(plan, sums)
    moment_N = lax.psum(_moved(moment_N, sums, whole.max_N), plan.vocabulary)
    scores_NK, ids_NK = _likeliest(top_k, lax.all_gather(top, plan.vocabulary, axis=1, tiled=True))
    logprobs_NK = scores_NK - whole.max_N[:, None] - jnp.log(whole.total_N)[:, None]
    entropy_N = jnp.log(whole.total_N) - moment_N / whole.total_N
    return entropy_N, logprobs_NK, jnp.where(scores_NK > NEGATIVE, ids_NK, -1)


def _moment(scores_NC: jax.Array, max_N: jax.Array) -> jax.Array:
    """The sum of e^(x - m) (x - m), to which a score of minus infinity adds nothing."""
    below_NC = scores_NC - max_N[:, None]
    return jnp.sum(jnp.where(scores_NC > NEGATIVE, jnp.exp(below_NC) * below_NC, 0.0), axis=1)


def _moved(moment_N: jax.Array, sums: Sums, max_N: jax.Array) -> jax.Array:
    """The moment about another maximum than that of `sums`, no smaller."""
    shift_N = sums.max_N - max_N
    return (moment_N + sums.total_N * shift_N) * jnp.exp(shift_N)


def _likeliest(top_k: int, *candidates: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The best of (scores, ids), both [N, any]; earlier ones first where they are equal."""
    scores_NA, ids_NA = (jnp.concatenate(arrays, axis=1) for arrays in zip(*candidates, strict=True))
    best_NK, at_NK = lax.top_k(scores_NA, top_k)
    return best_NK, jnp.take_along_axis(ids_NA, at_NK, axis=1)
