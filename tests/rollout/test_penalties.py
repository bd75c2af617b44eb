"""Penalties against transformers' processor and their definitions; the whole chain of filters as `generate` runs it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zppo_jax.ops.vocabulary import scaled_logits
from zppo_jax.rollout import filters
from zppo_jax.rollout.filters import Sampling

ROWS, VOCAB, PROMPT, LENGTH = 24, 50, 9, 17
CHAINS = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7},
    {"repetition_penalty": 1.3, "temperature": 0.6, "top_k": 7},
    {"repetition_penalty": 2.0, "temperature": 1.7, "top_p": 0.8},
    {"repetition_penalty": 1.1, "temperature": 0.8, "min_p": 0.1},
    {"repetition_penalty": 1.5, "temperature": 1.2, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
]
names = [",".join(f"{key}={value}" for key, value in one.items()) for one in CHAINS]

_penalise, _truncate = jax.jit(filters.penalise), jax.jit(filters.truncate)


def scores_and_ids() -> tuple[np.ndarray, np.ndarray]:
    """Scores of either sign [B, V], and the tokens of prompts and responses [B, T], many of them more than once."""
    rng = np.random.default_rng(0)
    return 3 * rng.standard_normal((ROWS, VOCAB)).astype(np.float32), rng.integers(0, VOCAB, (ROWS, LENGTH))


def said(ids_BT: np.ndarray) -> np.ndarray:
    """Whether each row holds each token of the vocabulary, bool [B, V]."""
    return (ids_BT[:, :, None] == np.arange(VOCAB)).any(axis=1)


def penalised(scores_BV: np.ndarray, ids_BT: np.ndarray, **settings: Any) -> np.ndarray:
    rows = filters.settings([Sampling(**settings)] * len(scores_BV))
    return np.asarray(_penalise(scores_BV, rows, said(ids_BT), said(ids_BT[:, PROMPT:])))


def transformers_scores(scores_BV: np.ndarray, ids_BT: np.ndarray, **settings: Any) -> np.ndarray:
    """The scores by transformers' `generate`, minus infinity if cut off: the penalty, then the warpers in order."""
    torch = pytest.importorskip("torch")
    import transformers

    makers = {
        "repetition_penalty": transformers.RepetitionPenaltyLogitsProcessor,
        "temperature": transformers.TemperatureLogitsWarper,
        "top_k": transformers.TopKLogitsWarper,
        "top_p": transformers.TopPLogitsWarper,
        "min_p": transformers.MinPLogitsWarper,
    }
    ids, scores = torch.tensor(ids_BT), torch.tensor(scores_BV)
    for name, maker in makers.items():
        if name in settings:
            scores = maker(settings[name])(ids, scores)
    return scores.numpy()


@pytest.mark.parametrize("penalty", [1.3, 0.7, 1.0])
def test_repetition_is_transformers_of_prompt_and_response(penalty):
    scores_BV, ids_BT = scores_and_ids()
    expected_BV = transformers_scores(scores_BV, ids_BT, repetition_penalty=penalty)
    np.testing.assert_allclose(penalised(scores_BV, ids_BT, repetition_penalty=penalty), expected_BV, rtol=1e-6)
    assert (expected_BV != scores_BV).any() == (penalty != 1.0)
    of_response = transformers_scores(scores_BV, ids_BT[:, PROMPT:], repetition_penalty=penalty)
    assert (expected_BV != of_response).any() == (penalty != 1.0), "the prompt's tokens count"


@pytest.mark.parametrize("settings", CHAINS, ids=names)
def test_the_whole_chain_keeps_what_transformers_keeps(settings):
    """And gives the kept tokens the same probabilities."""
    scores_BV, ids_BT = scores_and_ids()
    expected_BV = transformers_scores(scores_BV, ids_BT, **settings)
    chosen = Sampling(**settings)
    ours_BV = penalised(scores_BV, ids_BT, **settings)
    ours_BV = scaled_logits(jnp.asarray(ours_BV), chosen.temperature, np.zeros(1, bool))
    keep_BV = np.asarray(_truncate(ours_BV, chosen.top_k, chosen.top_p, chosen.min_p))
    np.testing.assert_array_equal(keep_BV, np.isfinite(expected_BV))
    assert keep_BV.all() != chosen.truncates
    kept_BV = np.where(keep_BV, np.exp(np.asarray(ours_BV, np.float64)), 0.0)
    theirs_BV = np.exp(expected_BV.astype(np.float64))
    np.testing.assert_allclose(
        kept_BV / kept_BV.sum(axis=1, keepdims=True), theirs_BV / theirs_BV.sum(axis=1, keepdims=True), rtol=1e-4
    )


@pytest.mark.parametrize("penalty", [1.5, -2.0])
def test_presence_is_taken_off_once_for_each_token_of_the_response(penalty):
    """OpenAI's definition: mu - penalty where the token was said, however often; the prompt does not count."""
    scores_BV, ids_BT = scores_and_ids()
    expected_BV = scores_BV.copy()
    for row, ids_T in enumerate(ids_BT):
        for token in set(ids_T[PROMPT:].tolist()):
            expected_BV[row, token] -= penalty
    np.testing.assert_allclose(penalised(scores_BV, ids_BT, presence_penalty=penalty), expected_BV, rtol=1e-6)


def test_both_penalties_repetition_first():
    scores_BV, ids_BT = scores_and_ids()
    once = transformers_scores(scores_BV, ids_BT, repetition_penalty=1.4) - 0.9 * said(ids_BT[:, PROMPT:])
    both = penalised(scores_BV, ids_BT, repetition_penalty=1.4, presence_penalty=0.9)
    np.testing.assert_allclose(both, once, rtol=1e-5, atol=1e-6)


def test_each_row_has_its_own():
    scores_BV, ids_BT = scores_and_ids()
    rows = [Sampling(repetition_penalty=1 + row / 10, presence_penalty=row / 5) for row in range(ROWS)]
    together = _penalise(scores_BV, filters.settings(rows), said(ids_BT), said(ids_BT[:, PROMPT:]))
    for row, one in enumerate(rows):
        alone = penalised(
            scores_BV[row : row + 1], ids_BT[row : row + 1],
            repetition_penalty=one.repetition_penalty, presence_penalty=one.presence_penalty,
        )  # fmt: skip
        np.testing.assert_allclose(np.asarray(together)[row], alone[0], rtol=1e-6)
