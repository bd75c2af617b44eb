"""The learner on groups that the tiny model has sampled itself."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import numpy as np
import pytest

from tests import tiny_model
from tests.tiny_model import (
    CREDIT,
    ROWS,
    SCHEDULE,
    SHAPES,
    FastCompiler,
    fresh_state,
    groups,
    learner,
    outcomes,
)
from zppo_jax.rollout.requests import Request
from zppo_jax.run import checkpoint
from zppo_jax.types import Cohort, Outcome
from zppo_jax.update import batch, losses, optimizer, rows
from zppo_jax.update.credit import GroupRelative
from zppo_jax.update.learner import Learner


def logprobs_of(params, chosen) -> np.ndarray:
    """The trainer's log-probabilities [M, G, R] of two groups, by the learner's program."""
    out = np.zeros((len(chosen), 3, SHAPES.max_new_tokens), np.float32)
    for m, group in enumerate(chosen):
        row = [rows.Part(m, (0, 1, 2))]
        weights_PG = np.zeros((len(chosen), 3))
        micro = rows.microbatch(tiny_model.model().config, chosen, weights_PG, [row], learner().compared)
        (found_T,) = np.asarray(learner()._logprobs(params, learner().compared)(params, micro, tiny_model.banned_V()))
        for g, rollout in enumerate(group.rollouts):
            own_T = (micro["segment_BT"][0] == 2 + g) & micro["counted_BT"][0]
            out[m, g, : len(rollout.token_ids_T)] = found_T[own_T]
    return out


def test_the_update_is_compiled_once_for_all_groups():
    state, step_groups = fresh_state(), (groups(), groups()[3:], groups()[1::-1])
    tiny_model.update(learner(), fresh_state(), groups(), seed=0, step=0)
    names = tiny_model.compiler().names
    for step, chosen in enumerate(step_groups):
        state, weights_PG, metrics, _ = tiny_model.update(learner(), state, chosen, seed=0, step=step)
        assert weights_PG.shape == (len(chosen), tiny_model.GROUP_SIZE)
        assert metrics["tokens"] > 0
        assert all(np.isfinite(value) for value in metrics.values())
    assert tiny_model.compiler().names == names
    assert {"zero gradient", "gradient", "update"} <= set(names)


def test_fresh_rollouts_show_no_mismatch():
    """Sampler and trainer are the same distribution: images, lengths and both buckets included."""
    for step in range(5):
        found = learner().mismatch(tiny_model.model().params, groups(), np.zeros((7, 3)), seed=0, step=step)
        assert 0 < found["mismatch_abs"] < 1e-4 and abs(found["mismatch_kl"]) < 1e-6


def test_one_row_a_device_is_compared():
    assert learner().shapes.num_rows == 2 and learner().compared.num_rows == 1


def test_other_parameters_show_a_mismatch():
    found = learner().mismatch(tiny_model.model(seed=1).params, groups(), np.zeros((7, 3)), seed=0, step=0)
    assert found["mismatch_abs"] > 0.1 and found["mismatch_kl"] > 0.05


def test_the_first_update_shows_the_mismatch_of_all_its_tokens():
    """Before it changes anything, so later updates do not count; another model gives that model's mismatch."""
    fresh = tiny_model.update(learner(), fresh_state(), groups(), seed=0, step=1).metrics
    assert 0 < fresh["mismatch_abs"] < 1e-4 and 0 <= fresh["mismatch_kl"] < 1e-6
    assert fresh["log_ratio_abs"] > 10 * fresh["mismatch_abs"]
    other = tiny_model.model(seed=1).params
    found = tiny_model.update(
        learner(), learner().init(jax.tree.map(lambda x: x + 0, other)), groups(), seed=0, step=1
    ).metrics
    weights_PG = CREDIT(outcomes(groups()), [])
    part = batch.split(len(groups()), SCHEDULE.num_minibatches, 0, 1, 0)[0]
    chosen = [groups()[index] for index in batch.with_gradient(part.tolist(), weights_PG)]
    sampled = [[one.logprobs_T for one in group.rollouts] for group in chosen]
    new_MGT, lengths = logprobs_of(other, chosen), [[len(one) for one in of_group] for of_group in sampled]
    log_ratios = [
        new_MGT[m, g, :length] - sampled[m][g]
        for m, of_group in enumerate(lengths)
        for g, length in enumerate(of_group)
    ]
    log_ratio = np.concatenate(log_ratios)
    np.testing.assert_allclose(found["mismatch_abs"], np.abs(log_ratio).mean(), rtol=1e-5)
    np.testing.assert_allclose(found["mismatch_kl"], (np.expm1(log_ratio) - log_ratio).mean(), rtol=1e-5)


def all_right():
    """The groups, with no wrong rollout in them."""
    return [
        dataclasses.replace(group, rollouts=tuple(dataclasses.replace(one, correct=True) for one in group.rollouts))
        for group in groups()
    ]


def test_without_a_gradient_some_rows_are_looked_at():
    found = tiny_model.update(learner(), fresh_state(), all_right(), seed=0, step=1).metrics
    assert found["tokens"] == 0 and 0 < found["mismatch_abs"] < 1e-4


def test_the_temperature_is_in_sampler_and_trainer_alike():
    requests = [Request(one.prompt.uid, one.features, 3) for one in tiny_model.items()[:2]]
    answers = tiny_model.sample(tiny_model.engine(), requests, temperature=2.0)
    hot = [tiny_model.group(*row, [True, False, False]) for row in zip(tiny_model.items(), answers, strict=False)]
    recipe = dataclasses.replace(learner().recipe, temperature=2.0)
    trainer = dataclasses.replace(learner(), recipe=recipe, compiler=FastCompiler(num_threads=1))
    found = trainer.mismatch(tiny_model.model().params, hot, np.zeros((2, 3)), seed=0, step=0)
    assert 0 < found["mismatch_abs"] < 1e-4
    wrong = learner().mismatch(tiny_model.model().params, hot, np.zeros((2, 3)), seed=0, step=0)
    assert wrong["mismatch_abs"] > 0.1


def test_an_update_likes_good_tokens_more_and_bad_tokens_less():
    chosen = groups()[:2]
    state, weights_PG, _, _ = tiny_model.update(learner(), fresh_state(), chosen, seed=0, step=1)
    change = logprobs_of(state["params"], chosen) - logprobs_of(tiny_model.model().params, chosen)
    tokens = [
        (weights_PG[m, g], change[m, g, t])
        for m, group in enumerate(chosen)
        for g, rollout in enumerate(group.rollouts)
        for t in range(len(rollout.token_ids_T))
    ]
    advantage, moved = np.asarray(tokens).T
    assert (advantage * moved).sum() > 0
    assert moved[advantage < 0].mean() < -1e-3 and moved[advantage > 0].mean() > 1e-3


def test_equal_rewards_everywhere_move_nothing():
    """No advantage, no gradient; the parameters stay bit-identical (without weight decay)."""
    state, weights_PG, metrics, _ = tiny_model.update(learner(), fresh_state(), all_right(), seed=0, step=1)
    assert not weights_PG.any() and metrics["nonzero_group_fraction"] == 0.0 and metrics["grad_norm"] == 0.0
    jax.tree.map(np.testing.assert_array_equal, state["params"], tiny_model.model().params)


def test_a_mini_batch_without_computed_tokens_has_no_ratio():
    """The second of two mini-batches has only equal rewards: ratio, kl and the distance are those of the first."""
    _, second = (part.tolist() for part in batch.split(len(groups()), 2, 0, 1, 0))
    pairs = enumerate(zip(groups(), all_right(), strict=True))
    chosen = [right if index in second else one for index, (one, right) in pairs]
    found = tiny_model.update(learner(), fresh_state(), chosen, seed=0, step=1).metrics
    assert found["tokens"] > 0 and abs(found["ratio"] - 1) < 1e-4 and found["kl"] < 1e-6
    assert found["log_ratio_abs"] == pytest.approx(found["mismatch_abs"])
    nothing = tiny_model.update(learner(), fresh_state(), all_right(), seed=0, step=1).metrics
    assert (
        all(np.isnan(nothing[one.name]) for one in losses.SUMS if one.over == "computed")
        and nothing["clip_fraction"] == 0
    )


def test_each_epoch_has_the_statistics_of_its_own_mini_batches():
    rng, names = np.random.default_rng(0), [f"q{number}" for number in range(8)]
    dealt = [Outcome(name, "plain", name, tuple(rng.random(8) < 0.5), 8, 0) for name in names]
    credit = dataclasses.replace(CREDIT, scope="minibatch")
    dealt = [learner()._epoch(Cohort((), tuple(dealt)), credit, 0, 1, epoch) for epoch in range(3)]
    assert len({tuple(np.concatenate(parts)) for parts, _ in dealt}) == 3
    for parts, weights_PG in dealt:
        for part in parts:
            uneven = [row_G for row_G in weights_PG[part] if row_G.any()]
            assert np.std(uneven) == pytest.approx(1, abs=1e-5)


def without_numbers(group):
    """The same group, whose log-probabilities are NaN."""
    rollouts = [dataclasses.replace(one, logprobs_T=np.full_like(one.logprobs_T, np.nan)) for one in group.rollouts]
    return dataclasses.replace(group, rollouts=tuple(rollouts))


def test_an_update_that_is_not_finite_changes_nothing():
    """Neither parameters nor moments nor the number of updates change; the other mini-batch is learned from."""
    parts = batch.split(len(groups()), SCHEDULE.num_minibatches, 0, 1, 0)
    updated = tiny_model.update(
        learner(), fresh_state(), [without_numbers(group) for group in groups()], seed=0, step=1
    )
    assert checkpoint.equal(updated.state, fresh_state()) and updated.metrics["skipped"] == len(parts)
    assert updated.skipped == {number: part.tolist() for number, part in enumerate(parts)}
    first, *others = groups()
    updated = tiny_model.update(learner(), fresh_state(), [without_numbers(first), *others], seed=0, step=1)
    assert [0 in part for part in updated.skipped.values()] == [True] and np.isfinite(updated.metrics["loss"])
    assert not checkpoint.equal(updated.state, fresh_state())


@pytest.mark.parametrize("inner_epochs", [1, 2])
def test_minibatches_and_inner_epochs_are_walked_in_turn(inner_epochs):
    """I updates per epoch, each on its own groups, from the parameters of the last one."""
    schedule = dataclasses.replace(SCHEDULE, inner_epochs=inner_epochs)
    walked = dataclasses.replace(learner(), schedule=schedule)
    state, weights_PG, _, _ = tiny_model.update(walked, fresh_state(), groups(), seed=3, step=5)
    expected = fresh_state()
    for epoch in range(inner_epochs):
        for part in batch.split(len(groups()), SCHEDULE.num_minibatches, 3, 5, epoch):
            placed = rows.arrange(groups(), batch.with_gradient(part.tolist(), weights_PG), ROWS)
            sums = learner().gradient(expected["params"], groups(), weights_PG, placed)
            counted = np.float32(batch.num_tokens(outcomes([groups()[i] for i in part])))
            expected, _ = learner()._update(expected)(expected, sums, counted)
    jax.tree.map(np.testing.assert_array_equal, state["params"], expected["params"])


def test_the_same_step_again_is_bit_equal():
    first, second = (tiny_model.update(learner(), fresh_state(), groups(), seed=0, step=4) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first[0], second[0])
    assert first[2] == second[2]
    other, _, _, _ = tiny_model.update(learner(), fresh_state(), groups(), seed=0, step=5)
    pairs = zip(jax.tree.leaves(first[0]["params"]), jax.tree.leaves(other["params"]), strict=True)
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in pairs), "another step, other mini-batches"


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [2.0, 2.0, 2.0, 2.0, 2.0]),
        ("constant", 2, [0.0, 1.0, 2.0, 2.0, 2.0]),
        ("linear", 0, [2.0, 1.5, 1.0, 0.5, 0.0]),
        ("linear", 2, [0.0, 1.0, 2.0, 1.0, 0.0]),
        ("cosine", 0, [2.0, 2 * 0.853553, 1.0, 2 * 0.146447, 0.0]),
    ],
)
def test_learning_rate_by_update(schedule, warmup, expected):
    rate = optimizer.learning_rate(schedule, 2.0, warmup, 4)
    np.testing.assert_allclose([float(np.asarray(rate(count))) for count in range(5)], expected, atol=1e-5)


def test_adamw_clips_the_global_norm_and_decays():
    """Clipping scales all gradients equally, so the moments after one step show the norm that Adam saw."""
    transform = optimizer.adamw(optimizer.learning_rate("constant", 0.1, 0, 1), 0.9, 0.999, 1e-8, 0.5, grad_clip=1.0)
    params = {"a": np.full(2, 4.0, np.float32), "b": np.zeros(2, np.float32)}
    gradient = {"a": np.asarray([30.0, 0.0], np.float32), "b": np.asarray([0.0, 40.0], np.float32)}
    changes: Any
    changes, state = transform.update(gradient, transform.init(params), params)
    (moments,) = [part for part in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(part, "mu")]
    np.testing.assert_allclose(moments.mu["a"], [0.06, 0.0], rtol=1e-5)
    np.testing.assert_allclose(moments.mu["b"], [0.0, 0.08], rtol=1e-5)
    np.testing.assert_allclose(changes["a"], [-0.1 - 0.1 * 0.5 * 4, -0.1 * 0.5 * 4], rtol=1e-4)
    np.testing.assert_allclose(changes["b"], [0.0, -0.1], rtol=1e-4)


# ---------------------------------------------------------------- the denominator of the ratio


def trainers() -> Learner:
    return dataclasses.replace(learner(), schedule=dataclasses.replace(SCHEDULE, old_logprobs="trainer"))


def disturbed(group):
    """The same group, from a sampler whose log-probabilities are off by a tenth of a nat or so."""
    rng = np.random.default_rng(0)

    def off(one):
        noise_T = np.abs(rng.normal(0, 0.1, len(one.logprobs_T)))
        return dataclasses.replace(one, logprobs_T=(one.logprobs_T - noise_T).astype(np.float32))

    return dataclasses.replace(group, rollouts=tuple(map(off, group.rollouts)))


def distance(chosen, others) -> float:
    """Mean absolute difference of the log-probabilities of two lists of groups, over all tokens."""
    pairs = zip((r for g in chosen for r in g.rollouts), (r for g in others for r in g.rollouts), strict=True)
    return float(np.mean(np.concatenate([np.abs(a.logprobs_T - b.logprobs_T) for a, b in pairs])))


def test_recomputed_log_probabilities_are_the_samplers_in_float32():
    """For every token of every group that is learned from, in whichever row it is; the others are unchanged."""
    weights_PG = CREDIT(outcomes(groups()), [])
    learned = batch.with_gradient(range(len(groups())), weights_PG)
    found, looked = trainers().with_old_logprobs(
        tiny_model.model().params, dict(enumerate(groups())), weights_PG, learned
    )
    assert all(found[index] is not groups()[index] for index in learned) and 0 < len(learned) < len(groups())
    for index in set(range(len(groups()))) - set(learned):
        assert distance([found[index]], [groups()[index]]) == 0
    assert 0 < distance([found[index] for index in learned], [groups()[index] for index in learned]) < 1e-6
    assert 0 < looked["mismatch_abs"] < 1e-6 and abs(looked["mismatch_kl"]) < 1e-6
    expected = logprobs_of(tiny_model.model().params, groups())
    for index in learned:
        for number, one in enumerate(found[index].rollouts):
            np.testing.assert_allclose(one.logprobs_T, expected[index, number, : len(one.token_ids_T)], rtol=1e-5)


def test_the_trainers_log_probabilities_hide_what_the_sampler_says():
    """A wrong sampler changes the update that divides by it, not the other; the mismatch metric shows it in both."""
    wrong = [disturbed(group) for group in groups()]
    clean = tiny_model.update(trainers(), fresh_state(), groups(), seed=0, step=1)
    hidden = tiny_model.update(trainers(), fresh_state(), wrong, seed=0, step=1)
    jax.tree.map(np.testing.assert_array_equal, clean.state["params"], hidden.state["params"])
    seen = tiny_model.update(learner(), fresh_state(), wrong, seed=0, step=1)
    assert not checkpoint.equal(seen.state, hidden.state) and seen.metrics["mismatch_abs"] > 0.03
    learned = batch.with_gradient(range(len(groups())), clean.weights_PG)
    off = distance([wrong[index] for index in learned], [groups()[index] for index in learned])
    assert hidden.metrics["mismatch_abs"] == pytest.approx(off, rel=1e-4) and off > 0.03
    assert clean.metrics["mismatch_abs"] < 1e-6
    sampled = tiny_model.update(learner(), fresh_state(), groups(), seed=0, step=1)
    for a, b in zip(jax.tree.leaves(sampled.state["params"]), jax.tree.leaves(clean.state["params"]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_where_nothing_is_learned_the_mismatch_is_still_measured():
    updated = tiny_model.update(trainers(), fresh_state(), all_right(), seed=0, step=1)
    assert 0 < updated.metrics["mismatch_abs"] < 1e-4


# ---------------------------------------------------------------- groups that must not enter


def test_two_groups_of_one_uid_are_refused():
    first, *others = groups()
    with pytest.raises(ValueError, match=r"two groups of the step have the uid '1/a/plain'"):
        tiny_model.update(learner(), fresh_state(), [first, *others, first], seed=0, step=1)


def test_after_a_skipped_update_the_mismatch_is_that_of_the_next():
    """The skipped one has changed nothing, so the next one's parameters are still the sampler's."""
    first, second = (part.tolist() for part in batch.split(len(groups()), 2, 0, 1, 0))
    chosen = [without_numbers(one) if index in first else one for index, one in enumerate(groups())]
    updated = tiny_model.update(learner(), fresh_state(), chosen, seed=0, step=1)
    assert list(updated.skipped) == [0] and second
    assert 0 < updated.metrics["mismatch_abs"] < 1e-4 and 0 <= updated.metrics["mismatch_kl"] < 1e-6
    nothing = tiny_model.update(learner(), fresh_state(), [without_numbers(one) for one in groups()], seed=0, step=1)
    assert np.isnan(nothing.metrics["mismatch_abs"]), "no update was made"


def test_a_group_with_an_undecided_rollout_gives_no_gradient():
    """Nor does it enter the statistics: the others' advantages are those of a step without it."""
    first, *others = groups()
    unknown = dataclasses.replace(first.rollouts[1], decided=False, status="error")
    undecided = dataclasses.replace(first, rollouts=(first.rollouts[0], unknown, *first.rollouts[2:]))
    for scope, normalisation in itertools.product(("batch", "minibatch"), ("nonzero", "all", "none")):
        credit = GroupRelative(normalisation, scope, 1e-6)
        with_it = credit(outcomes([undecided, *others]), [np.arange(7)])
        without = credit(outcomes(others), [np.arange(6)])
        assert not with_it[0].any()
        np.testing.assert_array_equal(with_it[1:], without)
    assert CREDIT(outcomes(groups()), [])[0].any(), "it had a gradient before"
    tokens = [batch.num_tokens(outcomes([group])) for group in (undecided, first)]
    assert tokens == [0, first.num_tokens], "nor is the loss divided by its tokens"
