"""Samples a token from logits: banned ids, penalties, temperature, truncation, inverse-CDF sampling.

All settings are traced, one value per row, so changing them compiles nothing. Log-probabilities are always those of the
untruncated distribution at the sampling temperature: with truncated ones the importance ratio would be wrong by the
kept mass.

Shape suffixes: B rows, V vocabulary, C blocks of the vocabulary, W tokens of a block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

BLOCK = 64
"""The number of tokens in a block; the inverse CDF sums a block at once."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings of sampling; temperature 0 is greedy, the other defaults change nothing.

    `repetition_penalty` divides (multiplies, if below 0) the scores of all tokens of prompt and response, as in
    transformers; `presence_penalty` is subtracted from the scores of the response's tokens, as in OpenAI's API.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0

    def __post_init__(self) -> None:
        rules = {
            "temperature": self.temperature >= 0,
            "top_k": self.top_k >= 0,
            "top_p": 0 < self.top_p <= 1,
            "min_p": 0 <= self.min_p < 1,
            "repetition_penalty": self.repetition_penalty > 0,
            "presence_penalty": -100 <= self.presence_penalty <= 100,
        }
        wrong = ", ".join(f"{name}={getattr(self, name)}" for name, holds in rules.items() if not holds)
        if wrong:
            raise ValueError(
                f"{wrong}: need temperature >= 0, top_k >= 0 (0: off), 0 < top_p <= 1 (1: off), 0 <= min_p < 1 "
                "(0: off), repetition_penalty > 0 (1: off), presence_penalty between -100 and 100 (0: off)"
            )

    @property
    def truncates(self) -> bool:
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def penalises(self) -> bool:
        return self.repetition_penalty != 1 or self.presence_penalty != 0


NAMES = tuple(field.name for field in dataclasses.fields(Sampling))


def settings(rows: Sequence[Sampling]) -> dict[str, np.ndarray]:
    """The settings of all rows in the form that the programs take: an array [B] for each."""
    kinds = {"top_k": np.int32}
    return {name: np.asarray([getattr(row, name) for row in rows], kinds.get(name, np.float32)) for name in NAMES}


def penalise(
    scores_BV: jax.Array, sampling: dict[str, Any], in_text_BV: jax.Array, in_response_BV: jax.Array
) -> jax.Array:
    """Applies the repetition and presence penalties to the scores before the temperature."""
    repetition_B1, presence_B1 = (sampling[f"{name}_penalty"][:, None] for name in ("repetition", "presence"))
    repeated_BV = jnp.where(scores_BV < 0, scores_BV * repetition_B1, scores_BV / repetition_B1)
    scores_BV = jnp.where(in_text_BV, repeated_BV, scores_BV)
    return scores_BV - jnp.where(in_response_BV, presence_B1, 0.0)


def truncate(scores_BV: jax.Array, top_k: ArrayLike, top_p: ArrayLike, min_p: ArrayLike) -> jax.Array:
    """The mask of the tokens of softmax(scores) that pass top-k, then top-p, then min-p, each with transformers'
    conventions.

    The settings are numbers for all rows, or arrays [B].
    """
    logprobs_BV, vocab = jax.nn.log_softmax(scores_BV, axis=-1), scores_BV.shape[-1]
    k_B1, p_B1, min_p_B1 = (jnp.broadcast_to(x, len(logprobs_BV))[:, None] for x in (top_k, top_p, min_p))
    ordered_BV = -jnp.sort(-logprobs_BV, axis=-1)
    last_B1 = jnp.where(k_B1 > 0, jnp.minimum(k_B1, vocab), vocab) - 1
    kth_B1 = jnp.take_along_axis(ordered_BV, last_B1, axis=-1)
    keep_BV = logprobs_BV >= kth_B1
    # top-p works on the tokens that top-k kept, renormalised; a token stays while the mass before it is below top_p.
    kept_BV = jnp.where(ordered_BV >= kth_B1, jnp.exp(ordered_BV), 0.0)
    kept_BV = kept_BV / jnp.sum(kept_BV, axis=-1, keepdims=True)
    before_BV = jnp.cumsum(kept_BV, axis=-1) - kept_BV
    is_in_BV = (before_BV < p_B1) & (kept_BV > 0)
    floor_B1 = jnp.min(jnp.where(is_in_BV, ordered_BV, jnp.inf), axis=-1, keepdims=True)
    keep_BV &= (logprobs_BV >= floor_B1) | (p_B1 >= 1.0)
    best_B1 = ordered_BV[:, :1]
    return keep_BV & (logprobs_BV >= best_B1 + jnp.log(min_p_B1))


def draw(scores_BV: jax.Array, uniform_B: jax.Array, greedy_B: ArrayLike = False) -> tuple[jax.Array, jax.Array]:
    """Draws one token of softmax(scores) per row by the inverse CDF, if greedy the first of the likeliest; minus
    infinity is never drawn. Returns (tokens, int32 [B], and their log-probabilities).

    Every C-th token of the vocabulary belongs to the same block. First a block is chosen by the sums of all blocks,
    then a token in it: only running sums over the blocks and over one block are computed, and nothing of the size of
    the vocabulary is written to memory. On a CPU, maxima over W, a middle axis, take a tenth of the time of those over
    the last axis.
    """
    num_rows, vocab = scores_BV.shape
    scores_BWC = jnp.pad(scores_BV, [(0, 0), (0, -vocab % BLOCK)], constant_values=-jnp.inf)
    scores_BWC = scores_BWC.reshape(num_rows, BLOCK, -1)
    num_blocks = scores_BWC.shape[-1]
    best_B = jnp.max(jnp.max(scores_BWC, axis=1), axis=-1)
    index_WC = jnp.arange(BLOCK * num_blocks).reshape(BLOCK, -1)
    likeliest_BWC = jnp.where(scores_BWC == best_B[:, None, None], index_WC, vocab)
    likeliest_B = jnp.min(jnp.min(likeliest_BWC, axis=1), axis=-1)
    block_B, rest_B, total_B = _choose(jnp.sum(jnp.exp(scores_BWC - best_B[:, None, None]), axis=1), uniform_B)
    scores_BW = jnp.take_along_axis(scores_BWC, block_B[:, None, None], axis=2)[..., 0]
    place_B, _, _ = _choose(jnp.exp(scores_BW - best_B[:, None]), rest_B)
    score_B = jnp.take_along_axis(scores_BW, place_B[:, None], axis=1)[:, 0]
    token_B = jnp.where(greedy_B, likeliest_B, place_B * num_blocks + block_B)
    return token_B.astype(jnp.int32), jnp.where(greedy_B, 0.0, score_B - best_B) - jnp.log(total_B)


def _choose(weight_BN: jax.Array, uniform_B: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Chooses an index by its weight. Returns (the index, the rest of the uniform number in it, the total weight)."""
    # A running sum may round up where the weight is 0: entries that cannot be drawn are excluded.
    cumulative_BN = jnp.where(weight_BN > 0.0, jnp.cumsum(weight_BN, axis=-1), 0.0)
    total_B = jnp.max(cumulative_BN, axis=-1)
    # Strictly below the total even when rounding says otherwise, so that some index always exceeds the target.
    target_B = jnp.minimum(uniform_B * total_B, jnp.nextafter(total_B, 0.0))
    index_B = jnp.argmax(cumulative_BN > target_B[:, None], axis=-1)
    chosen_B, up_to_B = (jnp.take_along_axis(x, index_B[:, None], axis=-1)[:, 0] for x in (weight_BN, cumulative_BN))
    rest_B = (target_B - (up_to_B - chosen_B)) / chosen_B
    return index_B, jnp.clip(rest_B, 0.0, 1.0), total_B
