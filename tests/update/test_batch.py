"""Groups as mini-batches and arrays: nothing is lost, nothing is counted twice."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny_model
from tests.tiny_model import SHAPES
from zppo_jax.types import Group, Rollout
from zppo_jax.update import batch, group_advantages, rows
from zppo_jax.update.credit import GroupRelative
from zppo_jax.update.learner import Schedule


@given(st.integers(1, 300), st.integers(1, 8), st.integers(0, 2**32), st.integers(0, 10_000), st.integers(0, 3))
def test_each_group_is_in_exactly_one_minibatch(num_groups, num_minibatches, seed, step, epoch):
    parts = batch.split(num_groups, num_minibatches, seed, step, epoch)
    assert sorted(np.concatenate(parts).tolist()) == list(range(num_groups))
    sizes = {len(part) for part in parts}
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1
    assert len(parts) == min(num_groups, num_minibatches)
    again = batch.split(num_groups, num_minibatches, seed, step, epoch)
    assert all((a == b).all() for a, b in zip(parts, again, strict=True))


def test_seed_step_and_epoch_permute_again():
    orders = {
        tuple(np.concatenate(batch.split(64, 4, *identity)).tolist())
        for identity in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1))
    }
    assert len(orders) == 5 and tuple(range(64)) not in orders


def random_group(rng: np.random.Generator, place: int) -> Group:
    """Rollouts of random lengths and tokens (each token names its group) on one of two prompts."""
    of = tiny_model.items()[place % 2]
    rollouts = []
    for _ in range(tiny_model.GROUP_SIZE):
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


def rollouts_in(micro) -> list[tuple]:
    """(prompt, tokens, old log-probabilities, advantage) of every branch, read from the arrays alone."""
    found = []
    for b in range(len(micro["tokens_BT"])):
        segment_T, mask_T = micro["segment_BT"][b], micro["mask_BT"][b]
        for segment in range(1, segment_T.max() + 1):
            own_T = (segment_T == segment) & mask_T
            trunk = micro["trunk_BT"][b][segment_T == segment][0]
            if trunk == segment:
                assert not micro["counted_BT"][b][own_T].any()
                continue
            assert micro["counted_BT"][b][own_T].all()
            fed, target, old = (micro[name][b][own_T] for name in ("tokens_BT", "target_BT", "old_logprobs_BT"))
            assert (fed[1:] == target[:-1]).all(), "each token is fed before the next is asked for"
            prompt = [*micro["tokens_BT"][b][(segment_T == trunk) & mask_T].tolist(), int(fed[0])]
            (advantage,) = set(micro["weights_BT"][b][own_T].tolist())
            found.append((tuple(prompt), tuple(target.tolist()), tuple(old.tolist()), advantage))
    return sorted(found)


def expected_rows(groups, advantages_PG) -> list[tuple]:
    """Every rollout of every group with an advantage, after its prompt; a group without one is not computed."""
    return sorted(
        (tuple(group.features.token_ids_T.tolist()), tuple(rollout.token_ids_T.tolist()),
         tuple(rollout.logprobs_T.tolist()), float(advantage))
        for group, advantages_G in zip(groups, advantages_PG, strict=True)
        if np.any(advantages_G)
        for rollout, advantage in zip(group.rollouts, advantages_G, strict=True)
    )  # fmt: skip


row_shapes = st.builds(
    lambda num_rows, extra, prompts: rows.shapes(num_rows, 24 + extra, prompts, 16, SHAPES.max_new_tokens, 16),
    st.integers(1, 4),
    st.integers(0, 200),
    st.integers(1, 4),
)


@given(random_groups, st.integers(1, 4), row_shapes, st.sampled_from(["batch", "minibatch"]))
def test_every_rollout_enters_exactly_once_with_its_own_advantage(groups, num_minibatches, shapes, scope):
    parts = batch.split(len(groups), num_minibatches, 0, 1, 0)
    advantages_PG = GroupRelative("nonzero", scope, 1e-6)(tiny_model.outcomes(groups), parts)
    seen: list[tuple] = []
    for part in parts:
        placed = rows.arrange(groups, batch.with_gradient(part.tolist(), advantages_PG), shapes)
        for start in range(0, len(placed), shapes.num_rows):
            chosen = placed[start : start + shapes.num_rows]
            seen += rollouts_in(rows.microbatch(tiny_model.model().config, groups, advantages_PG, chosen, shapes))
    assert sorted(seen) == expected_rows(groups, advantages_PG)


@given(random_groups, row_shapes)
def test_rows_are_within_their_limits_and_full(groups, shapes):
    chosen = list(range(len(groups)))
    placed = rows.arrange(groups, chosen, shapes)
    assert placed == rows.arrange(groups, chosen, shapes)
    used = [sum(rows._size(part, groups, shapes) for part in row) for row in placed]
    assert max(used) <= shapes.num_tokens and max(map(len, placed)) <= shapes.prompts_per_row
    parts = [part for row in placed for part in row]
    assert len({(part.group, rollout) for part in parts for rollout in part.rollouts}) == 3 * len(groups)
    for later in range(1, len(placed)):
        smallest = min(rows._size(part, groups, shapes) for part in placed[later])
        for size, row in zip(used[:later], placed[:later], strict=True):
            full = size + smallest > shapes.num_tokens or len(row) == shapes.prompts_per_row
            assert full, "a part stands in a new row only where no row before had room"


def test_a_group_is_split_only_when_no_row_holds_it():
    groups = [random_group(np.random.default_rng(place), place) for place in range(4)]
    long, short = (rows.shapes(2, size, 4, 16, SHAPES.max_new_tokens, 16) for size in (200, 0))
    assert sum(map(len, rows.arrange(groups, range(4), long))) == 4
    parts = [part for row in rows.arrange(groups, range(4), short) for part in row]
    assert len(parts) > 4 and {part.group for part in parts} == set(range(4))


def test_what_no_row_holds_is_refused_by_name():
    group = random_group(np.random.default_rng(0), 1)
    small = dataclasses.replace(rows.shapes(1, 0, 1, 16, SHAPES.max_new_tokens, 16), num_tokens=16)
    with pytest.raises(ValueError, match=r"prompt 1/1/plain of .* do not fit a row of 16: raise update.row_tokens"):
        rows.arrange([group], [0], small)


@pytest.mark.parametrize("num_groups", [0, 1, 3])
def test_arrays_have_one_shape_whatever_the_groups(num_groups):
    """The compiled gradient accepts any rows of the run."""
    groups = [random_group(np.random.default_rng(place), place) for place in range(num_groups)]
    shapes = rows.shapes(3, 100, 2, 16, SHAPES.max_new_tokens, SHAPES.patch_slots)
    placed = rows.arrange(groups, range(num_groups), shapes)
    packed = rows.microbatch(tiny_model.model().config, groups, np.ones((num_groups, 3)), placed, shapes)
    assert (shapes.num_tokens, shapes.chunk) == (104, 8)
    assert packed["tokens_BT"].shape == packed["counted_BT"].shape == (3, 104)
    assert packed["source_BC"].shape == (3, 13) and packed["context_BCJ"].shape == (3, 13, 3)
    assert packed["patches_ISC"].shape[:2] == (6, SHAPES.patch_slots)


def test_lengths_from_the_longest_prompt_and_response():
    """A row holds both, in whole chunks; a chunk is at most 64 long, and not longer than a response needs."""
    assert [rows.shapes(1, 0, 1, *lengths, 16).num_tokens for lengths in ((20, 16), (4096, 12_288))] == [48, 16_384]
    chunks = [rows.shapes(1, 0, 1, 20, length, 16).chunk for length in (1, 10, 16, 17, 64, 12_288)]
    assert chunks == [4, 16, 16, 32, 64, 64]
    assert rows.shapes(1, 1000, 1, 20, 16, 16).num_tokens == 1008
    assert rows.shapes(1, 0, 1, 20, 128, 16, longest_chunk=32).num_tokens == 32 + 128


@given(random_groups, st.integers(1, 4))
def test_scope_decides_whose_statistics_are_taken(groups, num_minibatches):
    parts = batch.split(len(groups), num_minibatches, 0, 1, 0)
    rewards_PG = np.stack([group.rewards_G for group in groups])
    whole = GroupRelative("all", "batch", 1e-6)(tiny_model.outcomes(groups), parts)
    np.testing.assert_array_equal(whole, group_advantages(rewards_PG, "all", 1e-6))
    by_part = GroupRelative("all", "minibatch", 1e-6)(tiny_model.outcomes(groups), parts)
    for part in parts:
        np.testing.assert_array_equal(by_part[part], group_advantages(rewards_PG[part], "all", 1e-6))


def test_scope_makes_a_difference():
    """One mini-batch with spread, one without: the first is divided by its own spread, or by that of both."""
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
    together = GroupRelative("all", "batch", 0.0)(tiny_model.outcomes(groups), parts)
    np.testing.assert_allclose(together[0], alone[0] * 2**0.5, rtol=1e-6)
    np.testing.assert_allclose(
        GroupRelative("all", "minibatch", 1e-6)(tiny_model.outcomes(groups), parts)[0], alone[0], rtol=1e-5
    )


def test_settings_are_plain_values():
    """Static arguments of a compiled program must be hashable."""
    assert hash(tiny_model.OBJECTIVE) == hash(dataclasses.replace(tiny_model.OBJECTIVE))
    assert isinstance(hash(tiny_model.SCHEDULE), int) and isinstance(tiny_model.SCHEDULE, Schedule)
