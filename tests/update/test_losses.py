"""The clipped surrogate against a slow reference, token by token in float64."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zppo_jax.update import clipped_surrogate

SHAPE = (3, 5)
_loss = jax.jit(clipped_surrogate)
_gradient = jax.jit(jax.grad(lambda *args: clipped_surrogate(*args)[0]))


def token_loss(new: float, old: float, advantage: float, low: float, high: float, dual: float) -> tuple[float, float]:
    """(loss, d loss / d new) of one token, by cases."""
    ratio = math.exp(new - old)
    if advantage >= 0:
        return (-advantage * ratio, -advantage * ratio) if ratio <= 1 + high else (-advantage * (1 + high), 0.0)
    if ratio < 1 - low:
        return -advantage * (1 - low), 0.0
    return (-advantage * ratio, -advantage * ratio) if ratio <= dual else (-advantage * dual, 0.0)


def reference(new_BT, old_BT, advantages_B, mask_BT, low=0.2, high=0.28, dual=10.0) -> tuple[float, np.ndarray]:
    """The loss and its gradient [B, T]."""
    total, gradient_BT = 0.0, np.zeros(new_BT.shape)
    for b, t in np.argwhere(mask_BT):
        new, old, advantage = float(new_BT[b, t]), float(old_BT[b, t]), float(advantages_B[b])
        loss, gradient_BT[b, t] = token_loss(new, old, advantage, low, high, dual)
        total += loss
    return total / max(mask_BT.sum(), 1), gradient_BT / max(mask_BT.sum(), 1)


logprobs = hnp.arrays(np.float32, SHAPE, elements=st.floats(-8, -0.0078125, width=32))
steps = hnp.arrays(np.float32, SHAPE, elements=st.floats(-4, 4, width=32))
advantages = hnp.arrays(np.float32, SHAPE[:1], elements=st.floats(-3, 3, width=32))
masks = hnp.arrays(bool, SHAPE)


@settings(max_examples=200)
@given(logprobs, steps, advantages, masks)
def test_loss_and_gradient_equal_the_reference(old_BT, step_BT, advantages_B, mask_BT):
    new_BT = old_BT + step_BT
    ratio = np.exp(new_BT.astype(np.float64) - old_BT)
    edges = np.asarray([0.8, 1.28, 10.0])
    if (np.abs(ratio[..., None] / edges - 1) < 1e-5).any():
        return  # at a corner the two sides differ
    loss, gradient_BT = reference(new_BT, old_BT, advantages_B, mask_BT)
    np.testing.assert_allclose(_loss(new_BT, old_BT, advantages_B, mask_BT)[0], loss, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(_gradient(new_BT, old_BT, advantages_B, mask_BT), gradient_BT, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.2, 1.0, -1.2, -1.2),
        (1.3, 1.0, -1.28, 0.0),  # clip-higher
        (0.1, 1.0, -0.1, -0.1),
        (0.7, -1.0, 0.8, 0.0),
        (0.9, -1.0, 0.9, 0.9),
        (5.0, -1.0, 5.0, 5.0),  # no upper clip for a bad token that became likely
        (20.0, -1.0, 10.0, 0.0),  # but the dual clip
        (20.0, -2.0, 20.0, 0.0),
    ],
)
def test_by_hand(ratio, advantage, loss, slope):
    new, old = np.full((1, 1), math.log(ratio) - 3, np.float32), np.full((1, 1), -3, np.float32)
    arguments = new, old, np.asarray([advantage], np.float32), np.ones((1, 1), bool)
    np.testing.assert_allclose(_loss(*arguments)[0], loss, rtol=1e-5)
    np.testing.assert_allclose(_gradient(*arguments)[0, 0], slope, rtol=1e-5)


def test_settings_are_used():
    new, old = np.full((1, 1), -1.0, np.float32), np.full((1, 1), -2.0, np.float32)
    mask = np.ones((1, 1), bool)
    loss = clipped_surrogate(new, old, jnp.ones(1), mask, clip_high=0.5)[0]
    np.testing.assert_allclose(loss, -1.5, rtol=1e-6)
    np.testing.assert_allclose(clipped_surrogate(new, old, -jnp.ones(1), mask, dual_clip=2.0)[0], 2.0, rtol=1e-6)
    np.testing.assert_allclose(clipped_surrogate(old, new, -jnp.ones(1), mask, clip_low=0.4)[0], 0.6, rtol=1e-6)


def test_metrics_count_tokens():
    """Of five real tokens one is clipped above, one below, one by the dual clip; a masked one is not counted."""
    ratios = np.asarray([[1.0, 1.5, 1.1, 9.0], [0.5, 20.0, 1.0, 1.0]])
    mask = np.asarray([[1, 1, 1, 0], [1, 1, 0, 0]], bool)
    metrics = _loss(np.log(ratios).astype(np.float32), np.zeros((2, 4), np.float32), np.asarray([1.0, -1.0]), mask)[1]
    expected = {"tokens": 5, "clip_fraction": 2 / 5, "dual_clip_fraction": 1 / 5, "ratio": ratios[mask].mean()}
    expected["kl"] = np.mean(ratios[mask] - 1 - np.log(ratios[mask]))
    expected["log_ratio_abs"] = np.mean(np.abs(np.log(ratios[mask])))
    expected["loss"] = (-1.0 - 1.28 - 1.1 + 0.8 + 10.0) / 5
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    assert set(metrics) == set(expected)


def test_kl_of_nearly_equal_logprobs_is_not_lost_to_rounding():
    old = np.zeros((1, 4), np.float32)
    kl = _loss(old + np.float32(1e-5), old, np.ones(1), np.ones((1, 4), bool))[1]["kl"]
    np.testing.assert_allclose(kl, 0.5e-10, rtol=0.01)


@settings(max_examples=50)
@given(logprobs, steps, advantages, masks, st.sampled_from([np.inf, -np.inf, np.nan]), st.sampled_from([0, 1, 2]))
def test_masked_positions_may_hold_anything(old_BT, step_BT, advantages_B, mask_BT, poison, where):
    new_BT = old_BT + step_BT
    poisoned = [np.where(mask_BT, x, poison).astype(np.float32) for x in (new_BT, old_BT)]
    poisoned = [poisoned[0] if where != 1 else new_BT, poisoned[1] if where != 0 else old_BT]
    np.testing.assert_array_equal(
        _loss(*poisoned, advantages_B, mask_BT)[0], _loss(new_BT, old_BT, advantages_B, mask_BT)[0]
    )
    gradient_BT = np.asarray(_gradient(*poisoned, advantages_B, mask_BT))
    assert (gradient_BT[~mask_BT] == 0.0).all()
    np.testing.assert_array_equal(gradient_BT, _gradient(new_BT, old_BT, advantages_B, mask_BT))


def test_an_empty_mask_gives_zero_and_no_gradient():
    ones, mask = np.full(SHAPE, -np.inf, np.float32), np.zeros(SHAPE, bool)
    loss, metrics = _loss(ones, ones, np.ones(3, np.float32), mask)
    assert loss == 0.0 and all(np.isfinite(value) for value in metrics.values())
    assert not np.asarray(_gradient(ones, ones, np.ones(3, np.float32), mask)).any()


def test_at_ratio_one_the_gradient_is_minus_advantage_over_tokens():
    """On-policy the surrogate is REINFORCE; so is the first of the I updates."""
    rng = np.random.default_rng(0)
    logprobs_BT = -rng.exponential(1.0, SHAPE).astype(np.float32)
    advantages_B, mask_BT = np.asarray([1.5, -2.0, 0.25], np.float32), rng.random(SHAPE) < 0.7
    expected_BT = np.where(mask_BT, -advantages_B[:, None], 0.0) / mask_BT.sum()
    np.testing.assert_allclose(_gradient(logprobs_BT, logprobs_BT, advantages_B, mask_BT), expected_BT, rtol=1e-6)


def test_tokens_are_averaged_over_the_batch_not_over_rows():
    """A long response weighs more than a short one (DAPO's aggregation)."""
    mask_BT = np.asarray([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
    zeros = np.zeros(SHAPE, np.float32)
    np.testing.assert_allclose(_loss(zeros, zeros, np.asarray([1.0, -2.0, 9.0]), mask_BT)[0], (-5 + 2) / 6, rtol=1e-6)


def test_a_ratio_that_overflows_stays_finite():
    """Parameters far from the sampler's: exp(200) must give neither NaN nor infinity, in loss, gradient or metrics."""
    new, old = np.asarray([[-1.0], [-1.0], [-1.0]], np.float32), np.full((3, 1), -201.0, np.float32)
    arguments = new, old, np.asarray([1.0, 0.0, -1.0], np.float32), np.ones((3, 1), bool)
    loss, metrics = _loss(*arguments)
    np.testing.assert_allclose(loss, (-1.28 + 0.0 + 10.0) / 3, rtol=1e-6)
    assert all(np.isfinite(value) for value in metrics.values())
    assert not np.asarray(_gradient(*arguments)).any()
