"""The gradient of the compiled update against one pass over every whole sequence, prompt and response together."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_model
from tests.models.tiny import FAST_COMPILE
from tests.tiny_model import SETTINGS, SHAPES, learner
from zppo_jax.models.qwen3_5 import inputs, vlm
from zppo_jax.types import Group
from zppo_jax.update import batch

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
    return batch.advantages(groups(), [], "nonzero", "batch", 1e-6)


def num_tokens() -> int:
    return sum(len(rollout.token_ids_T) for group in groups() for rollout in group.rollouts)


def compiled(packed) -> tuple[Any, dict[str, Any]]:
    """Gradient and metrics of the program that a run uses."""
    state = tiny_model.fresh_state()
    new_state, metrics = learner()._update(state)(state, packed, tiny_model.banned_V())
    return new_state["optimizer"], jax.device_get(metrics)


@functools.cache
def from_learner() -> tuple[Any, dict[str, Any]]:
    return compiled(learner()._pack(groups(), advantages_PG()))


def pack(parts: list[list[list[int]]], counted: int | None = None) -> dict[str, Any]:
    """Micro-batches of chosen groups by bucket, in the shapes of the learner's program."""
    config, size, buckets = tiny_model.model().config, SETTINGS.groups_per_microbatch, []
    for bucket, micro in enumerate(parts):
        filled = [*micro, *[[]] * (4 - len(micro))]
        made = [
            batch.microbatch(config, [groups()[i] for i in part], advantages_PG()[part], size, bucket, SHAPES)
            for part in filled
        ]
        arrays = {name: np.stack([one[name] for one in made]) for name in made[0]}
        buckets.append({"count": np.int32(len(micro)), "arrays": arrays})
    total = sum(len(r.token_ids_T) for micro in parts for part in micro for i in part for r in groups()[i].rollouts)
    return {"buckets": tuple(buckets), "num_tokens": np.float32(total if counted is None else counted)}


# ---------------------------------------------------------------- the naive way


def whole_sequences() -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray]:
    """Every prompt with each of its responses as a row of its own, as a processor would give it (images repeated).

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
        "pixel_values": np.concatenate([g.features.patches_IC for g, *_ in rows]),
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
    """Every parameter's gradient within `relative` of its own norm; and there is a gradient at all."""
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


@pytest.mark.parametrize(
    "parts",
    [
        [[[0], [2], [5]], [[1], [3], [4], [6]]],
        [[[5, 0], [2]], [[6, 1], [4, 3]]],
        [[], [[0, 1], [2, 3], [4, 5], [6]]],
    ],
    ids=["one group each", "another order", "one bucket for all"],
)
def test_the_split_in_microbatches_and_buckets_changes_nothing(parts):
    """All but rounding: a group alone beside a padding group, other neighbours, a longer bucket."""
    assert SHAPES.bucket_of(groups()[0].features) != SHAPES.bucket_of(groups()[1].features)
    gradient, metrics = compiled(pack(parts))
    assert_close(gradient, from_learner()[0], 2e-6)
    for name in ("loss", "clip_fraction", "dual_clip_fraction", "grad_norm"):
        np.testing.assert_allclose(metrics[name], from_learner()[1][name], rtol=1e-5, err_msg=name)


def test_padding_groups_contribute_nothing_whatever_they_hold():
    packed = pack([[[0], [2], [5]], [[1], [3], [4], [6]]])
    poisoned = jax.tree.map(np.copy, packed)
    for bucket in poisoned["buckets"]:
        arrays = bucket["arrays"]
        empty = ~arrays["mask_MGR"].any(axis=(2, 3))
        arrays["response_MGR"][empty] = 5
        arrays["old_logprobs_MGR"][empty] = -np.inf
        arrays["advantages_MG"][empty] = 1e3
        arrays["response_MGR"][~arrays["mask_MGR"]] = tiny_model.model().config.image_token_id  # banned: minus infinity
    (clean, clean_metrics), (dirty, dirty_metrics) = compiled(packed), compiled(poisoned)
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    assert dirty_metrics == clean_metrics


def test_the_empty_minibatch_has_no_gradient():
    gradient, metrics = compiled(pack([[], []]))
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))
    assert metrics["loss"] == metrics["tokens"] == metrics["grad_norm"] == 0.0


def test_a_group_without_spread_moves_nothing_but_counts_its_tokens():
    """Group 2 has equal rewards: its gradient is exactly zero; it stays in the denominator (token-level mean)."""
    alone, metrics = compiled(pack([[[2]], []]))
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(alone)) and metrics["tokens"] > 0
    assert learner()._pack(groups(), advantages_PG())["num_tokens"] == num_tokens()
    without, _ = compiled(pack([[[0], [5]], [[1, 3], [4, 6]]], num_tokens()))
    assert_close(without, from_learner()[0], 2e-6)


def test_metrics_of_the_update():
    _, metrics = from_learner()
    squares = sum(float(np.sum(np.square(leaf))) for leaf in jax.tree.leaves(from_learner()[0]))
    np.testing.assert_allclose(metrics["grad_norm"], squares**0.5, rtol=1e-5)
    assert metrics["kl"] > 0
