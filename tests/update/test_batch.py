"""How groups become mini-batches and arrays: nothing is lost, nothing is counted twice."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny_model
from tests.tiny_model import SHAPES
from zppo_jax.types import Group, Rollout
from zppo_jax.update import batch, group_advantages
from zppo_jax.update.learner import Settings


@given(st.integers(1, 300), st.integers(1, 8), st.integers(0, 2**32), st.integers(0, 10_000), st.integers(0, 3))
def test_each_group_is_in_exactly_one_minibatch(num_groups, num_minibatches, seed, step, epoch):
    parts = batch.split(num_groups, num_minibatches, seed, step, epoch)
    assert sorted(np.concatenate(parts).tolist()) == list(range(num_groups))
    sizes = {len(part) for part in parts}
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1
    assert len(parts) == min(num_groups, num_minibatches)
    again = batch.split(num_groups, num_minibatches, seed, step, epoch)
    assert all((a == b).all() for a, b in zip(parts, again, strict=True))


def test_seed_step_and_epoch_permute_anew():
    orders = {
        tuple(np.concatenate(batch.split(64, 4, *identity)).tolist())
        for identity in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1))
    }
    assert len(orders) == 5 and tuple(range(64)) not in orders


def random_group(rng: np.random.Generator, place: int) -> Group:
    """Rollouts of random lengths and tokens (each token names its group) on one of two prompts."""
    of = tiny_model.items()[place % 2]
    rollouts = []
    for _ in range(SHAPES.group_size):
        length = int(rng.integers(1, SHAPES.max_new_tokens + 1))
        tokens = (10 * place + rng.integers(0, 10, length)).astype(np.int32)
        logprobs = -rng.exponential(1.0, length).astype(np.float32)
        rollouts.append(Rollout(tokens, logprobs, "stop", "", bool(rng.integers(2)), None, "ok"))
    prompt = dataclasses.replace(of.prompt, uid=f"1/{place}/plain")
    return Group(prompt, of.features, tuple(rollouts))


random_groups = st.integers(0, 2**32).flatmap(
    lambda seed: st.integers(1, 12).map(
        lambda count: [random_group(np.random.default_rng([seed, place]), place) for place in range(count)]
    )
)


def rollouts_in(packed) -> list[tuple]:
    """(tokens, old log-probabilities, advantage) of every row with a token that counts."""
    rows = []
    for bucket in packed["buckets"]:
        arrays = bucket["arrays"]
        for u, m, g in np.argwhere(arrays["mask_MGR"].any(axis=-1)):
            assert u < bucket["count"], "a micro-batch that the update does not run"
            mask_R = arrays["mask_MGR"][u, m, g]
            tokens, old = (arrays[name][u, m, g][mask_R] for name in ("response_MGR", "old_logprobs_MGR"))
            rows.append((tuple(tokens.tolist()), tuple(old.tolist()), float(arrays["advantages_MG"][u, m, g])))
    return sorted(rows)


def expected_rows(groups, advantages_PG) -> list[tuple]:
    """Every rollout of every group with an advantage; a group without one has no gradient and is not computed."""
    return sorted(
        (tuple(rollout.token_ids_T.tolist()), tuple(rollout.logprobs_T.tolist()), float(advantage))
        for group, advantages_G in zip(groups, advantages_PG, strict=True)
        if np.any(advantages_G)
        for rollout, advantage in zip(group.rollouts, advantages_G, strict=True)
    )


@given(random_groups, st.integers(1, 4), st.integers(1, 3), st.sampled_from(["batch", "minibatch"]))
def test_every_rollout_enters_exactly_once_with_its_own_advantage(groups, num_minibatches, per_microbatch, scope):
    parts = batch.split(len(groups), num_minibatches, 0, 1, 0)
    advantages_PG = batch.advantages(groups, parts, "nonzero", scope, 1e-6)
    seen, tokens = [], 0.0
    for part in parts:
        packed = batch.minibatch(
            tiny_model.model().config, [groups[i] for i in part], advantages_PG[part], SHAPES, per_microbatch, 12
        )
        seen += rollouts_in(packed)
        tokens += packed["num_tokens"]
    assert sorted(seen) == expected_rows(groups, advantages_PG)
    assert tokens == sum(len(rollout.token_ids_T) for group in groups for rollout in group.rollouts)


@given(random_groups, st.integers(1, 4))
def test_scope_decides_whose_statistics_are_taken(groups, num_minibatches):
    parts = batch.split(len(groups), num_minibatches, 0, 1, 0)
    rewards_PG = np.stack([group.rewards_G for group in groups])
    whole = batch.advantages(groups, parts, "all", "batch", 1e-6)
    np.testing.assert_array_equal(whole, group_advantages(rewards_PG, "all", 1e-6))
    by_part = batch.advantages(groups, parts, "all", "minibatch", 1e-6)
    for part in parts:
        np.testing.assert_array_equal(by_part[part], group_advantages(rewards_PG[part], "all", 1e-6))


def test_scope_makes_a_difference():
    """One mini-batch with spread, one without: the first has its own spread as unit, or that of both."""
    rng = np.random.default_rng(0)
    groups = [random_group(rng, place) for place in range(2)]
    rewards = ((True, False, False), (False, False, False))
    groups = [
        dataclasses.replace(
            group, rollouts=tuple(dataclasses.replace(r, correct=c) for r, c in zip(group.rollouts, row, strict=True))
        )
        for group, row in zip(groups, rewards, strict=True)
    ]
    parts = [np.asarray([0]), np.asarray([1])]
    alone = group_advantages(np.asarray(rewards)[:1], "all", 0.0)
    together = batch.advantages(groups, parts, "all", "batch", 0.0)
    np.testing.assert_allclose(together[0], alone[0] * 2**0.5, rtol=1e-6)
    np.testing.assert_allclose(batch.advantages(groups, parts, "all", "minibatch", 1e-6)[0], alone[0], rtol=1e-5)


@pytest.mark.parametrize("num_groups", [0, 1, 5, 12])
def test_arrays_have_one_shape_whatever_the_groups(num_groups):
    """The compiled update takes any mini-batch of the run."""
    groups = [random_group(np.random.default_rng(place), place) for place in range(num_groups)]
    advantages_PG = np.ones((num_groups, SHAPES.group_size), np.float32)
    packed = batch.minibatch(tiny_model.model().config, groups, advantages_PG, SHAPES, 5, 12)
    assert len(packed["buckets"]) == len(SHAPES.buckets)
    for bucket, length in zip(packed["buckets"], SHAPES.buckets, strict=True):
        arrays = bucket["arrays"]
        assert arrays["tokens_BT"].shape == (3, 5, length)
        assert arrays["patches_ISC"].shape[:3] == (3, 5, SHAPES.patch_slots)
        assert arrays["response_MGR"].shape == (3, 5, SHAPES.group_size, SHAPES.max_new_tokens)


def test_padding_groups_have_no_weight():
    groups = [random_group(np.random.default_rng(1), 0)]
    packed = batch.minibatch(tiny_model.model().config, groups, np.full((1, 3), 2.0, np.float32), SHAPES, 4, 12)
    arrays = packed["buckets"][0]["arrays"]
    assert packed["buckets"][0]["count"] == 1 and packed["buckets"][1]["count"] == 0
    for name in ("mask_MGR", "advantages_MG", "mask_BT"):
        assert arrays[name][0, 0].any() and not arrays[name][0, 1:].any() and not arrays[name][1:].any()


def test_more_groups_than_promised_change_the_shape():
    """`max_groups` is a promise; a program compiled for it refuses what breaks it, and drops nothing in silence."""
    groups = [random_group(np.random.default_rng(place), 2 * place) for place in range(4)]
    packed = batch.minibatch(tiny_model.model().config, groups, np.ones((4, 3), np.float32), SHAPES, 1, max_groups=3)
    assert packed["buckets"][0]["arrays"]["mask_MGR"].shape[0] == 4


def test_settings_are_plain_values():
    """Static arguments of a compiled program must be hashable."""
    assert hash(tiny_model.OBJECTIVE) == hash(dataclasses.replace(tiny_model.OBJECTIVE))
    assert isinstance(hash(tiny_model.SETTINGS), int) and isinstance(tiny_model.SETTINGS, Settings)
