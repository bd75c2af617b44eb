"""Truncation against transformers' warpers, draws against exact probabilities."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from zppo_jax.ops.vocabulary import scaled_logits
from zppo_jax.rollout import filters
from zppo_jax.rollout.filters import Sampling

COMBINATIONS = [
    {"top_k": 5},
    {"top_k": 1},
    {"top_k": 1000},
    {"top_p": 0.9},
    {"top_p": 0.3},
    {"top_p": 0.01},
    {"min_p": 0.1},
    {"top_k": 12, "top_p": 0.8},
    {"top_k": 20, "top_p": 0.95, "min_p": 0.05},
]
names = [",".join(f"{key}={value}" for key, value in one.items()) for one in COMBINATIONS]

_truncate = jax.jit(filters.truncate)
_draw = jax.jit(filters.draw)


def kept(logits_BV: np.ndarray, **settings) -> np.ndarray:
    rows = filters.settings([Sampling(**settings)] * len(logits_BV))
    return np.asarray(_truncate(jnp.asarray(logits_BV), rows["top_k"], rows["top_p"], rows["min_p"]))


def transformers_keeps(logits_BV: np.ndarray, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> np.ndarray:
    """Top-k, top-p and min-p in the order in which `generate` applies them."""
    torch = pytest.importorskip("torch")
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = torch.tensor(logits_BV)
    ids: torch.LongTensor = torch.zeros((len(logits_BV), 1), dtype=torch.long)  # type: ignore[assignment]
    warpers = []
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    for warper in warpers:
        scores = warper(ids, scores)
    return torch.isfinite(scores).numpy()


@pytest.mark.parametrize("settings", COMBINATIONS, ids=names)
def test_truncation_keeps_what_transformers_keeps(settings):
    logits_BV = 3 * np.random.default_rng(0).standard_normal((64, 50)).astype(np.float32)
    expected_BV = transformers_keeps(logits_BV, **settings)
    np.testing.assert_array_equal(kept(logits_BV, **settings), expected_BV)
    assert expected_BV.all() == (settings.get("top_k") == 1000)


@pytest.mark.parametrize("settings", COMBINATIONS, ids=names)
def test_equal_logits_are_kept_or_cut_together(settings):
    """transformers' top-p cuts equal probabilities by their place in a sort; here all of them stay."""
    logits_BV = np.random.default_rng(1).integers(-4, 4, (64, 50)).astype(np.float32)
    ours_BV, theirs_BV = kept(logits_BV, **settings), transformers_keeps(logits_BV, **settings)
    lowest_B1 = np.where(theirs_BV, logits_BV, np.inf).min(axis=1, keepdims=True)
    if "top_p" in settings:
        np.testing.assert_array_equal(ours_BV, logits_BV >= lowest_B1)
    else:
        np.testing.assert_array_equal(ours_BV, theirs_BV)


def test_settings_out_of_range_are_refused():
    wrongs: list[dict[str, Any]] = [
        {"temperature": -0.1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 1.0},
        {"repetition_penalty": 0.0},
        {"presence_penalty": 101.0},
    ]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Sampling(**wrong)


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.6}, {"temperature": 2.0}, {"top_k": 6}, {"top_p": 0.7}, {"min_p": 0.1},
     {"temperature": 1.3, "top_k": 8, "top_p": 0.9, "min_p": 0.02}],
)  # fmt: skip
def test_draws_follow_the_exact_probabilities(settings):
    """Chi-square of 20,000 draws; the expected probabilities are computed here, in float64, by sorting."""
    count, rng = 20_000, np.random.default_rng(2)
    logits_V = 2 * rng.standard_normal(16).astype(np.float32)
    banned_V = np.arange(16) == int(np.argmax(logits_V))
    expected_V = _exact_probabilities(logits_V, banned_V, **settings)
    chosen = Sampling(**settings)
    scores_1V = scaled_logits(jnp.asarray(logits_V)[None], chosen.temperature, banned_V)
    if chosen.truncates:
        keep_1V = _truncate(scores_1V, chosen.top_k, chosen.top_p, chosen.min_p)
        scores_1V = jnp.where(keep_1V, scores_1V, -jnp.inf)
    uniform_B = jax.random.uniform(jax.random.key(3), (count,))
    drawn_B, logprob_B = (np.asarray(x) for x in _draw(jnp.broadcast_to(scores_1V, (count, 16)), uniform_B))
    np.testing.assert_allclose(np.exp(logprob_B), expected_V[drawn_B], rtol=1e-5)
    counts_V = np.bincount(drawn_B, minlength=16)
    assert not counts_V[expected_V == 0].any()
    possible = expected_V > 0
    assert scipy.stats.chisquare(counts_V[possible], count * expected_V[possible]).pvalue > 1e-3


def _exact_probabilities(logits_V, banned_V, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> np.ndarray:
    probs_V = np.where(banned_V, 0.0, np.exp(logits_V.astype(np.float64) / temperature))
    probs_V /= probs_V.sum()
    order = np.argsort(-probs_V)
    if top_k:
        probs_V[order[top_k:]] = 0.0
        probs_V /= probs_V.sum()
    before = np.cumsum(probs_V[order]) - probs_V[order]
    probs_V[order[before >= top_p]] = 0.0
    probs_V[probs_V < min_p * probs_V.max()] = 0.0
    return probs_V / probs_V.sum()


def test_rounding_never_draws_a_token_without_weight():
    """A prefix sum computed in parallel may rise by rounding at tokens of weight 0: this aims exactly at those."""
    rng = np.random.default_rng(4)
    logits_1V = 3 * rng.standard_normal((1, 4096)).astype(np.float32)
    banned_V = rng.random(4096) < 0.7
    scores_1V = scaled_logits(jnp.asarray(logits_1V), 1.0, banned_V)
    cumulative_V = np.asarray(jax.jit(lambda x: jnp.cumsum(jax.nn.softmax(x), axis=-1))(scores_1V))[0]
    before_V = np.maximum.accumulate(np.concatenate([[0.0], cumulative_V[:-1]]))
    traps = np.flatnonzero(banned_V & (cumulative_V > before_V))
    aims = [before_V[traps] / cumulative_V[-1], cumulative_V[traps] / cumulative_V[-1]]
    aims = np.concatenate([*aims, np.linspace(0, 1, 2000, endpoint=False), [1 - 2**-24]]).astype(np.float32)
    scores_BV = jnp.broadcast_to(scores_1V, (len(aims), 4096))
    drawn_B = np.asarray(_draw(scores_BV, jnp.asarray(aims))[0])
    assert not banned_V[drawn_B].any()


@pytest.mark.parametrize("vocab", [7, 64, 300])
def test_greedy_is_the_first_of_the_likeliest_whatever_the_uniform_number(vocab):
    rng = np.random.default_rng(5)
    scores_BV = rng.integers(-6, 3, (200, vocab)).astype(np.float32)  # many ties
    scores_BV[rng.random(scores_BV.shape) < 0.2] = -np.inf
    scores_BV[:, vocab // 2] = 0.0
    token_B, logprob_B = (np.asarray(x) for x in _draw(scores_BV, rng.random(200, np.float32), np.ones(200, bool)))
    np.testing.assert_array_equal(token_B, scores_BV.argmax(axis=1))
    exact_BV = scores_BV - scipy.special.logsumexp(scores_BV.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(logprob_B, exact_BV[np.arange(200), token_B], atol=1e-6)
