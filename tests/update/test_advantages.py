"""Advantages by hand (Eqs 2, 3 and 5), and the relations of their three modes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zppo_jax.update import group_advantages
from zppo_jax.update.advantages import NORMALISATIONS

REWARDS = np.asarray([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
CENTRED = np.asarray([[0.75, -0.25, -0.25, -0.25], [0.5, 0.5, -0.5, -0.5], [0.0] * 4, [0.0] * 4])
SQUARES = 0.75 + 1.0  # the sum of the squares of CENTRED

rewards = hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 8)), elements=st.sampled_from([0.0, 1.0]))


@pytest.mark.parametrize(
    ("normalisation", "spread"), [("nonzero", (SQUARES / 8) ** 0.5), ("all", (SQUARES / 16) ** 0.5), ("none", 1.0)]
)
def test_by_hand(normalisation, spread):
    advantages = group_advantages(REWARDS, normalisation)
    np.testing.assert_allclose(advantages, CENTRED / spread, rtol=1e-5)
    assert advantages.dtype == np.float32


def test_the_default_leaves_groups_without_spread_out_of_the_statistics():
    np.testing.assert_array_equal(group_advantages(REWARDS), group_advantages(REWARDS, "nonzero"))
    np.testing.assert_allclose(group_advantages(REWARDS)[:2], group_advantages(REWARDS[:2]), rtol=1e-6)


def test_eps_is_added_to_the_spread():
    spread = (SQUARES / 8) ** 0.5
    np.testing.assert_allclose(group_advantages(REWARDS, eps=0.5), CENTRED / (spread + 0.5), rtol=1e-6)


@given(rewards, st.sampled_from(NORMALISATIONS))
def test_a_group_without_spread_is_exactly_zero_and_others_are_not(rewards_PG, normalisation):
    advantages = group_advantages(rewards_PG, normalisation)
    assert np.isfinite(advantages).all()
    has_spread = rewards_PG.std(axis=1) > 0
    np.testing.assert_array_equal(np.any(advantages != 0.0, axis=1), has_spread)
    np.testing.assert_allclose(advantages.mean(axis=1), 0.0, atol=1e-5)
    best = (rewards_PG == 1) & has_spread[:, None]
    assert (advantages[best] > 0).all() and (advantages[~best & has_spread[:, None]] < 0).all()


@given(st.floats(-10, 10, width=32), st.integers(2, 9), st.sampled_from(NORMALISATIONS))
def test_equal_rewards_of_any_value_are_exactly_zero(value, size, normalisation):
    """The mean of eleven times 0.1 is not 0.1 in floating point: that must have no effect."""
    groups = np.stack([np.full(size, value), np.arange(size)])
    assert not group_advantages(groups, normalisation)[0].any()


@given(rewards)
def test_all_groups_in_the_statistics_amplify_by_one_over_sqrt_of_the_share(rewards_PG):
    """sigma over all groups is sqrt(f) times sigma over those with spread (Sec. 3.2)."""
    share = float(np.mean(rewards_PG.std(axis=1) > 0))
    few, every = (group_advantages(rewards_PG, mode, eps=0.0 if share else 1e-6) for mode in ("nonzero", "all"))
    np.testing.assert_allclose(every * share**0.5, few, rtol=1e-4, atol=1e-6)
    if share:
        chosen = few[rewards_PG.std(axis=1) > 0]
        np.testing.assert_allclose(chosen.std(), 1.0, rtol=1e-5)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_a_batch_without_any_spread_is_all_zero(normalisation):
    assert not group_advantages(np.ones((3, 4)), normalisation).any()
    assert group_advantages(np.zeros((0, 4)), normalisation).shape == (0, 4)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"advantage\.normalisation='std'"):
        group_advantages(REWARDS, "std")
    with pytest.raises(ValueError, match=r"\(16,\)"):
        group_advantages(REWARDS.reshape(-1))  # TRL #6804: flat rewards silently made one group
