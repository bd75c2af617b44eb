"""Draws through the engine: two tokens against exact probabilities, for every combination of filters.

The model's vocabulary has 130 ids, three blocks of the inverse CDF; all but eleven of them are banned, so that 20,000
draws fill the 121 pairs of tokens. The expected probabilities are computed here, in float64, by sorting.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest
import scipy.stats

from tests.models.tiny import FAST_COMPILE
from tests.rollout import build
from zppo_jax.compilation import Compiler
from zppo_jax.keys import RandomStream
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import inputs, vlm
from zppo_jax.rollout.engine import Engine
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.requests import Request, Sample
from zppo_jax.rollout.sample import sample
from zppo_jax.rollout.shapes import Shapes

pytestmark = pytest.mark.computes

DRAWS, VOCAB = 20_000, 130
ALLOWED = np.asarray([0, 1, 7, 30, 62, 63, 64, 65, 100, 128, 129])
PROMPT = np.asarray([5, 7, 100, 7, 128, 65])
SHAPES = Shapes(buckets=(8,), patch_slots=16, max_new_tokens=2)
COMBINATIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6},
    {"temperature": 2.0},
    {"top_k": 4},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"presence_penalty": 1.5},
    {"repetition_penalty": 1.8},
    {"temperature": 1.4, "top_k": 9, "top_p": 0.95},
    {"temperature": 1.3, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 0.8, "repetition_penalty": 0.6, "presence_penalty": -1.0},
    {"temperature": 1.7, "top_k": 8, "top_p": 0.9, "min_p": 0.03, "repetition_penalty": 1.3, "presence_penalty": 0.8},
]
names = [",".join(f"{key}={value}" for key, value in one.items()) or "plain" for one in COMBINATIONS]


@functools.cache
def model() -> qwen3_5.Model:
    return build.small_model(VOCAB, seed=3)


@functools.cache
def engine() -> Engine:
    banned = np.setdiff1d(np.arange(VOCAB), ALLOWED).tolist()
    compiler = Compiler(num_threads=1)  # a quarter of a million draws: optimised programs are worth compiling
    return build.engine(model(), "distribution", SHAPES, 2048, 1, 2, banned, compiler, penalises=True)


@functools.cache
def scores() -> dict[tuple[int, ...], np.ndarray]:
    """The forward pass's float64 scores of the allowed ids after the prompt, and after the prompt and one token."""
    rows = [PROMPT, *([*PROMPT, token] for token in ALLOWED)]
    ids_BT, mask_BT = np.zeros((len(rows), 8), np.int64), np.zeros((len(rows), 8), np.int64)
    for index, row in enumerate(rows):
        ids_BT[index, : len(row)], mask_BT[index, : len(row)] = row, 1
    batch, _ = inputs.from_hf(model().config, input_ids=ids_BT, attention_mask=mask_BT)
    logits_BTV = np.asarray(_forward(model().params, model().config, batch), np.float64)
    return {tuple(row): logits_BTV[index, len(row) - 1, ALLOWED] for index, row in enumerate(rows)}


_forward = jax.jit(vlm.logits, static_argnums=1, compiler_options=FAST_COMPILE)


def softmax(scores_A: np.ndarray) -> np.ndarray:
    weights_A = np.exp(scores_A - scores_A.max())
    return weights_A / weights_A.sum()


def untruncated(scores_A: np.ndarray, one: Sampling) -> np.ndarray:
    return softmax(scores_A / (one.temperature or 1.0))


def exact(scores_A: np.ndarray, one: Sampling, response: tuple[int, ...] = ()) -> np.ndarray:
    """The probabilities of the draw: penalties, temperature, top-k, top-p, min-p."""
    in_response = np.isin(ALLOWED, response)
    in_text = in_response | np.isin(ALLOWED, PROMPT)
    factor_A = np.where(scores_A > 0, 1 / one.repetition_penalty, one.repetition_penalty)
    scores_A = scores_A * np.where(in_text, factor_A, 1.0) - one.presence_penalty * in_response
    probs_A = softmax(scores_A / one.temperature)
    order = np.argsort(-probs_A)
    if one.top_k:
        probs_A[order[one.top_k :]] = 0.0
        probs_A /= probs_A.sum()
    if one.top_p < 1:
        probs_A[order[np.cumsum(probs_A[order]) - probs_A[order] >= one.top_p]] = 0.0
        probs_A /= probs_A.sum()
    probs_A[probs_A < one.min_p * probs_A.max()] = 0.0
    return probs_A / probs_A.sum()


def pairs(one: Sampling) -> np.ndarray:
    """Exact probabilities [A, A] of the first two tokens."""
    first_A = exact(scores()[tuple(PROMPT)], one)
    second_AA = np.stack([exact(scores()[(*PROMPT, token)], one, (token,)) for token in ALLOWED])
    return first_A[:, None] * second_AA


@functools.cache
def draws(one: Sampling, count: int, seed: int = 0) -> list[Sample]:
    request = Request("q", build.text_features(PROMPT), count, one, RandomStream(seed))
    return sample(engine(), model().params, [request])[0]


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """The p-value; cells of fewer than five expected draws are counted as one."""
    expected = counts.sum() * probabilities
    assert not counts[expected == 0].any(), "a pair that cannot be drawn"
    rare = expected < 5
    counts, expected = (np.append(x[~rare], x[rare].sum()) for x in (counts, expected))
    possible = expected > 0
    return float(scipy.stats.chisquare(counts[possible], expected[possible]).pvalue)


@pytest.mark.parametrize("settings", COMBINATIONS, ids=names)
def test_two_tokens_follow_the_exact_probabilities(settings):
    """And both log-probabilities of every draw are exact: untruncated, and of the distribution drawn from."""
    one = Sampling(**settings)
    samples = draws(one, DRAWS)
    tokens_N2 = np.stack([sample.token_ids_T for sample in samples])
    index_N2 = np.searchsorted(ALLOWED, tokens_N2)
    assert (ALLOWED[index_N2] == tokens_N2).all(), "a banned id"
    counts = np.bincount(index_N2[:, 0] * len(ALLOWED) + index_N2[:, 1], minlength=len(ALLOWED) ** 2)
    probabilities = pairs(one).reshape(-1)
    pvalue = chi_square(counts, probabilities)
    print(f"{settings}: p = {pvalue:.3f} over {(probabilities * DRAWS >= 5).sum()} pairs")
    assert pvalue > 1e-3

    logprobs_N2 = np.stack([sample.logprobs_T for sample in samples])
    kept_N2 = np.stack([sample.kept_logprobs_T for sample in samples])
    first, second = index_N2.T
    after = [scores()[(*PROMPT, token)] for token in ALLOWED]
    whole_AA = np.stack([untruncated(scores_A, one) for scores_A in after])
    kept_AA = np.stack([exact(scores_A, one, (token,)) for token, scores_A in zip(ALLOWED, after, strict=True)])
    at_first = scores()[tuple(PROMPT)]
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(logprobs_N2[:, 0], np.log(untruncated(at_first, one))[first], atol=1e-4)
        np.testing.assert_allclose(logprobs_N2[:, 1], np.log(whole_AA)[first, second], atol=1e-4)
        np.testing.assert_allclose(kept_N2[:, 0], np.log(exact(at_first, one))[first], atol=1e-4)
        np.testing.assert_allclose(kept_N2[:, 1], np.log(kept_AA)[first, second], atol=1e-4)


def test_the_test_would_notice():
    """20,000 draws distinguish settings from similar ones: the chi-square test of the wrong one fails."""
    tokens_N2 = np.stack([sample.token_ids_T for sample in draws(Sampling(presence_penalty=1.5), DRAWS)])
    first, second = np.searchsorted(ALLOWED, tokens_N2).T
    counts = np.bincount(first * len(ALLOWED) + second, minlength=len(ALLOWED) ** 2)
    for wrong in (Sampling(), Sampling(presence_penalty=1.1), Sampling(presence_penalty=1.5, temperature=1.1)):
        assert chi_square(counts, pairs(wrong).reshape(-1)) < 1e-6


def test_neighbours_with_other_settings_change_nothing():
    """All combinations at once in one engine, a few draws of each in turn: every request gets its result as alone."""
    features = build.text_features(PROMPT)
    requests = [Request("q", features, 40, Sampling(**one), RandomStream(1)) for one in COMBINATIONS]
    together = sample(engine(), model().params, requests)
    for request, samples in zip(requests, together, strict=True):
        for mine, alone in zip(samples, draws(request.sampling, 40, seed=1), strict=True):
            np.testing.assert_array_equal(mine.token_ids_T, alone.token_ids_T)
            np.testing.assert_allclose(mine.kept_logprobs_T, alone.kept_logprobs_T, atol=1e-4)
            np.testing.assert_allclose(mine.logprobs_T, alone.logprobs_T, atol=1e-4)


def test_greedy_takes_the_best_of_the_penalised_scores():
    one = Sampling(temperature=0.0, repetition_penalty=3.0, presence_penalty=4.0)
    (sample,) = draws(one, 1)
    token_ids: tuple[int, ...] = ()
    for token, logprob in zip(sample.token_ids_T, sample.logprobs_T, strict=True):
        scores_A = scores()[(*PROMPT, *token_ids)]
        probs_A = exact(scores_A, Sampling(repetition_penalty=3.0, presence_penalty=4.0), token_ids)
        place = int(np.argmax(probs_A))
        assert token == ALLOWED[place]
        assert abs(logprob - np.log(softmax(scores_A)[place])) < 1e-4
        token_ids = (*token_ids, int(token))
    np.testing.assert_array_equal(sample.kept_logprobs_T, 0.0)
