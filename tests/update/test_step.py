"""The gradient of the compiled update against one pass over every whole sequence, prompt and response together."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tiny_model
from tests.models.tiny import FAST_COMPILE
from tests.tiny_model import ROWS, SHAPES, learner
from zppo_jax.models.qwen3_5 import inputs, vlm
from zppo_jax.processor.patches import normalised
from zppo_jax.types import Group
from zppo_jax.update import batch, rows
from zppo_jax.update.rows import Part, Row

NUM_SLOTS = SHAPES.buckets[-1] + 1 + SHAPES.max_new_tokens


@functools.cache
def groups() -> tuple[Group, ...]:
    """Rollouts whose old log-probabilities are off by up to 60 %: ratios on both sides of every clip.

    The seed is one whose loss (0.04) is not the small rest of large terms.
    """
    rng = np.random.default_rng(6)

    def off(rollout):
        noise = rng.uniform(-0.6, 0.6, len(rollout.logprobs_T)).astype(np.float32)
        return dataclasses.replace(rollout, logprobs_T=rollout.logprobs_T + noise)

    return tuple(dataclasses.replace(g, rollouts=tuple(map(off, g.rollouts))) for g in tiny_model.groups())


@functools.cache
def advantages_PG() -> np.ndarray:
    return tiny_model.CREDIT(tiny_model.outcomes(groups()), [])


def num_tokens() -> int:
    return sum(len(rollout.token_ids_T) for group in groups() for rollout in group.rollouts)


def compiled(placed: list[Row], counted: int | None = None) -> tuple[Any, dict[str, Any]]:
    """Gradient and metrics of the programs that a run uses, for chosen rows."""
    state = tiny_model.fresh_state()
    sums = learner().gradient(state["params"], groups(), advantages_PG(), placed)
    new_state, metrics = learner()._update(state)(state, sums, np.float32(num_tokens() if counted is None else counted))
    return new_state["optimizer"], jax.device_get(metrics)


def arranged(*chosen: int) -> list[Row]:
    return rows.arrange(groups(), chosen or range(len(groups())), ROWS)


@functools.cache
def from_learner() -> tuple[Any, dict[str, Any]]:
    return compiled(rows.arrange(groups(), batch.with_gradient(range(len(groups())), advantages_PG()), ROWS))


# ---------------------------------------------------------------- the naive way


def whole_sequences() -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray]:
    """Every prompt with each of its responses as a separate row, as a processor would give it (images repeated).

    Returns the model's inputs and per token [B, T]: old log-probabilities, advantages, and whether it was sampled.
    """
    rows = [
        (g, rollout, advantage)
        for g, advantages_G in zip(groups(), advantages_PG(), strict=True)
        for rollout, advantage in zip(g.rollouts, advantages_G, strict=True)
    ]
    shape = (len(rows), NUM_SLOTS)
    ids, mask, types = (np.zeros(shape, np.int64) for _ in range(3))
    old_BT, advantages_BT, sampled_BT = np.zeros(shape), np.zeros(shape), np.zeros(shape, bool)
    for b, (g, rollout, advantage) in enumerate(rows):
        start = g.features.num_tokens
        end = start + len(rollout.token_ids_T)
        ids[b, :start], ids[b, start:end] = g.features.token_ids_T, rollout.token_ids_T
        mask[b, :end], types[b, :start] = 1, g.features.token_types_T
        old_BT[b, start:end], advantages_BT[b, start:end] = rollout.logprobs_T, advantage
        sampled_BT[b, start:end] = True
    images = {
        "pixel_values": normalised(normalised(np.concatenate([g.features.patches_IC for g, *_ in rows]))),
        "image_grid_thw": np.concatenate([g.features.grid_thw_N3 for g, *_ in rows]),
    }
    config = tiny_model.model().config
    packed, _ = inputs.from_hf(config, input_ids=ids, attention_mask=mask, mm_token_type_ids=types, **images)
    return packed, old_BT, advantages_BT, sampled_BT


@functools.cache
def naive() -> tuple[Any, float]:
    """(gradient, loss) of the token-mean clipped loss, written down plainly."""
    packed, old_BT, advantages_BT, sampled_BT = whole_sequences()
    config, banned_V = tiny_model.model().config, tiny_model.banned_V()

    def loss(params):
        logits_BTV = jnp.where(banned_V, -jnp.inf, vlm.logits(params, config, packed))
        logprobs_BTV = jax.nn.log_softmax(logits_BTV)[:, : NUM_SLOTS - 1]
        new_BT = jnp.take_along_axis(logprobs_BTV, packed["tokens_BT"][:, 1:NUM_SLOTS, None], axis=-1)[..., 0]
        chosen = jnp.where(sampled_BT[:, 1:], new_BT, old_BT[:, 1:])
        ratio = jnp.exp(chosen - old_BT[:, 1:])
        gain = jnp.minimum(ratio * advantages_BT[:, 1:], jnp.clip(ratio, 0.8, 1.28) * advantages_BT[:, 1:])
        return -jnp.sum(jnp.where(sampled_BT[:, 1:], gain, 0.0)) / sampled_BT.sum()

    value, gradient = jax.jit(jax.value_and_grad(loss), compiler_options=FAST_COMPILE)(tiny_model.model().params)
    return gradient, float(value)


def assert_close(actual, expected, relative: float) -> None:
    """Asserts that every parameter's gradient is within `relative` of its norm, and that there is a gradient at all."""
    worst = 0.0
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        scale = float(np.linalg.norm(b))
        assert scale > 1e-8, jax.tree_util.keystr(path)
        error = float(np.linalg.norm(np.asarray(a) - np.asarray(b))) / scale
        assert error < relative, f"{jax.tree_util.keystr(path)}: {error:.1e}"
        worst = max(worst, error)
    print(f"largest relative error {worst:.1e}")


# ---------------------------------------------------------------- tests


def test_gradient_equals_that_of_whole_sequences():
    """A prompt run once and forked to its rollouts gives the same gradient, down to the vision tower."""
    gradient, metrics = from_learner()
    expected, loss = naive()
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    assert 0.05 < metrics["clip_fraction"] < 0.6, "the clips must be at work"
    assert_close(gradient, expected, 1e-5)


def split(*placed: list[tuple[int, ...]]) -> list[Row]:
    """Rows of (group, rollout, rollout, ...)."""
    return [[Part(group, tuple(rollouts)) for group, *rollouts in row] for row in placed]


@pytest.mark.parametrize(
    "placed",
    [
        [[Part(group, (0, 1, 2))] for group in (0, 5, 1, 3, 4, 6)],
        split([(6, 0, 1, 2), (1, 0, 1, 2)], [(5, 0, 1, 2), (0, 0, 1, 2)], [(4, 0, 1, 2), (3, 0, 1, 2)]),
        split(
            [(0, 2), (1, 0)], [(3, 1), (4, 0, 1)], [(0, 1), (5, 2)], [(0, 0), (6, 0, 2)], [(5, 0, 1), (6, 1)],
            [(1, 1, 2), (3, 0, 2)], [(4, 2)],
        ),
    ],
    ids=["one group in a row", "another order", "groups over several rows"],
)  # fmt: skip
def test_rows_and_micro_batches_change_nothing(placed):
    """Nothing but rounding: a group alone, other neighbours, its rollouts in separate rows."""
    gradient, metrics = compiled(placed)
    assert_close(gradient, from_learner()[0], 2e-6)
    for name in ("loss", "clip_fraction", "dual_clip_fraction", "grad_norm"):
        np.testing.assert_allclose(metrics[name], from_learner()[1][name], rtol=1e-5, err_msg=name)


@settings(max_examples=10, deadline=None)
@given(st.randoms(use_true_random=False))
def test_any_packing_gives_the_same_gradient(random):
    """Rollouts dealt to rows at random, rows to micro-batches at random."""
    placed: list[Row] = []
    for group in (0, 1, 3, 4, 5, 6):
        dealt = [random.randrange(3) for _ in range(3)]
        for pile in sorted(set(dealt)):
            part = Part(group, tuple(rollout for rollout in range(3) if dealt[rollout] == pile))
            free = [row for row in placed if len(row) < ROWS.prompts_per_row]
            random.choice(free).append(part) if free and random.random() < 0.5 else placed.append([part])
    random.shuffle(placed)
    assert_close(compiled(placed)[0], from_learner()[0], 2e-6)


def test_what_is_not_counted_contributes_nothing_whatever_it_holds():
    config = tiny_model.model().config
    micro = rows.microbatch(config, groups(), advantages_PG(), arranged(0, 1, 3)[:2], ROWS)
    dirty = {name: np.copy(value) for name, value in micro.items()}
    pads, uncounted = ~micro["mask_BT"], ~micro["counted_BT"]
    dirty["tokens_BT"][pads], dirty["positions_3BT"][:, pads] = 5, 99
    dirty["target_BT"][uncounted] = config.image_token_id  # banned: minus infinity
    dirty["old_logprobs_BT"][uncounted], dirty["weights_BT"][uncounted] = -np.inf, 1e3
    params = tiny_model.model().params
    sums = [
        learner()._gradient(params)(learner()._zero(params)(params), params, None, one, tiny_model.banned_V())
        for one in (micro, dirty)
    ]
    jax.tree.map(np.testing.assert_array_equal, *sums)


def test_no_rows_no_gradient():
    gradient, metrics = compiled([], counted=0)
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))
    assert metrics["loss"] == metrics["tokens"] == metrics["grad_norm"] == 0.0


def test_a_group_without_spread_moves_nothing_but_counts_its_tokens():
    """Group 2 has equal rewards: its gradient is exactly zero; it stays in the denominator (token-level mean)."""
    alone, metrics = compiled(arranged(2))
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(alone)) and metrics["tokens"] > 0
    assert batch.with_gradient(range(7), advantages_PG()) == [0, 1, 3, 4, 5, 6]
    assert batch.num_tokens(tiny_model.outcomes(groups())) == num_tokens()
    assert_close(compiled(arranged())[0], from_learner()[0], 2e-6)


def test_metrics_of_the_update():
    _, metrics = from_learner()
    squares = sum(float(np.sum(np.square(leaf))) for leaf in jax.tree.leaves(from_learner()[0]))
    np.testing.assert_allclose(metrics["grad_norm"], squares**0.5, rtol=1e-5)
    assert metrics["kl"] > 0
