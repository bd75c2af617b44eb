"""Requests to the sampler, and its samples.

Shape suffixes: T tokens, B rows (slots).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import jax
import numpy as np

from zppo_jax.keys import ROLLOUTS, RandomStream
from zppo_jax.rollout.filters import Sampling
from zppo_jax.types import Features, FinishReason


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """One sampled response: token ids (stop token included), the reason why it ended, and two log-probabilities: of the
    untruncated distribution at the sampling temperature, and of the one drawn from (penalised, truncated)."""

    token_ids_T: np.ndarray
    logprobs_T: np.ndarray
    finish_reason: FinishReason
    kept_logprobs_T: np.ndarray


@dataclasses.dataclass(frozen=True)
class Request:
    """A request for `num_samples` responses to one prompt; `uid` seeds them.

    `max_new_tokens` None means the engine's limit. A response ends, with reason "stop", at the token that completes one
    of `stop_strings`. Prompts with the same `vision_key` show the same images: they are encoded once.
    """

    uid: str
    features: Features
    num_samples: int
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    draw: RandomStream = dataclasses.field(default_factory=RandomStream)
    max_new_tokens: int | None = None
    stop_strings: tuple[str, ...] = ()
    vision_key: str | None = None


@jax.jit
def _row_keys(draw_B3: jax.Array, uid_B: jax.Array, sample_B: jax.Array) -> jax.Array:
    def one(draw_3: jax.Array, *rest: jax.Array) -> jax.Array:
        return functools.reduce(jax.random.fold_in, (draw_3[1], draw_3[2], *rest), jax.random.key(draw_3[0]))

    return jax.random.key_data(jax.vmap(one)(draw_B3, uid_B, sample_B))


def row_keys(rollouts: Sequence[tuple[RandomStream, str, int]]) -> jax.Array:
    """The key [B, 2] of each rollout, as numbers: from its random stream, its prompt's uid and its index."""
    draws = [(draw.seed % 2**32, draw.step, ROLLOUTS[draw.purpose]) for draw, _, _ in rollouts]
    uids = [int.from_bytes(hashlib.blake2b(uid.encode(), digest_size=4).digest(), "little") for _, uid, _ in rollouts]
    samples = [sample for _, _, sample in rollouts]
    return _row_keys(*(np.asarray(values, np.uint32) for values in (draws, uids, samples)))
