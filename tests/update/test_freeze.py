"""Frozen parameters: no gradient, no optimiser state, the same bits afterwards; the others learn as before."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from tests import tiny_model
from tests.tiny_model import FastCompiler, groups
from zppo_jax.errors import ConfigError
from zppo_jax.run.checkpoint import Checkpoints, equal
from zppo_jax.update import batch, freeze, optimizer, programs, rows
from zppo_jax.update.learner import Learner
from zppo_jax.update.programs import Recipe

VISION = ("vision/**",)
CLIP = 1e-3


def flatten(tree: Any) -> dict[str, Any]:
    return traverse_util.flatten_dict(tree, sep="/")


def num_bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def adamw(**changes: Any) -> optax.GradientTransformation:
    rate = optimizer.learning_rate("constant", 0.01, 0, 1)
    return optimizer.adamw(rate, 0.9, 0.999, 1e-8, weight_decay=0.1, grad_clip=CLIP, **changes)


def without_vision() -> optax.GradientTransformation:
    """Sets the gradients of the vision tower to zero."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return updates | {"vision": jax.tree.map(jnp.zeros_like, updates["vision"])}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


@functools.cache
def learner(frozen_patterns: tuple[str, ...]) -> Learner:
    """A learner with frozen parameters, or with zero gradients in the vision tower; compiled separately."""
    return dataclasses.replace(
        tiny_model.learner(),
        recipe=recipe(adamw() if frozen_patterns else optax.chain(without_vision(), adamw()), frozen_patterns),
        compiler=FastCompiler(num_threads=1),
    )


def recipe(transform: optax.GradientTransformation, frozen_patterns: tuple[str, ...]) -> Recipe:
    return dataclasses.replace(tiny_model.learner().recipe, transform=transform, frozen_patterns=frozen_patterns)


def fresh_state(frozen_patterns: tuple[str, ...]) -> dict[str, Any]:
    return learner(frozen_patterns).init(jax.tree.map(jnp.copy, tiny_model.model().params))


@functools.cache
def updated(frozen_patterns: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """State and metrics after one update on all groups."""
    chosen, state = learner(frozen_patterns), fresh_state(frozen_patterns)
    advantages_PG = tiny_model.CREDIT(tiny_model.outcomes(groups()), [])
    placed = rows.arrange(groups(), batch.with_gradient(range(len(groups())), advantages_PG), tiny_model.ROWS)
    sums = chosen.gradient(state["params"], groups(), advantages_PG, placed)
    return jax.device_get(
        chosen._update(state)(state, sums, np.float32(batch.num_tokens(tiny_model.outcomes(groups()))))
    )


def moments(state: dict[str, Any]) -> Any:
    leaves = jax.tree.leaves(state["optimizer"], is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))
    (found,) = [leaf for leaf in leaves if isinstance(leaf, optax.ScaleByAdamState)]
    return found


# ---------------------------------------------------------------- an update


@pytest.mark.slow
def test_frozen_parameters_stay_to_the_bit():
    """Weight decay, which needs no gradient, does not touch them either."""
    before, after = flatten(tiny_model.model().params), flatten(updated(VISION)[0]["params"])
    assert before.keys() == after.keys()
    for path in before:
        assert np.array_equal(before[path], after[path]) == path.startswith("vision/"), path


@pytest.mark.slow
def test_the_others_learn_as_if_the_frozen_gradients_were_zero():
    """Before clipping: the norm is that of the trainable gradients alone."""
    (state, metrics), (whole, whole_metrics) = updated(VISION), updated(())
    assert metrics["grad_norm"] > 5 * CLIP, "the clip must be at work"
    assert whole_metrics["grad_norm"] > 1.01 * metrics["grad_norm"], "the vision tower must have a gradient to lose"
    # The loss is the small rest (0.02) of advantages of size 1, whose rounding differs from program to program.
    np.testing.assert_allclose(metrics["loss"], whole_metrics["loss"], atol=1e-6)
    squares = sum(float(np.sum(np.square(leaf / 0.1))) for leaf in jax.tree.leaves(moments(state).mu))
    np.testing.assert_allclose(squares**0.5, CLIP, rtol=1e-5)
    expected = {"mu": moments(whole).mu["text"], "nu": moments(whole).nu["text"], "params": whole["params"]["text"]}
    actual = {"mu": moments(state).mu["text"], "nu": moments(state).nu["text"], "params": state["params"]["text"]}
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b), jax.tree_util.keystr(path)


def test_the_optimiser_keeps_nothing_for_frozen_parameters():
    state, whole = fresh_state(VISION), fresh_state(())
    assert set(moments(state).mu) == set(moments(state).nu) == {"text"}
    vision = num_bytes(tiny_model.model().params["vision"])
    assert num_bytes(whole["optimizer"]) - num_bytes(state["optimizer"]) == 2 * vision
    assert jax.tree.structure(updated(VISION)[0]) == jax.tree.structure(state)


@pytest.mark.parametrize(
    ("name", "num_kept"), [("nearest", 2 * 2), ("stochastic", 2 * 2), ("kahan", 3 * 2), ("master", 2 * 2 + 4)]
)
def test_nor_does_it_in_bfloat16(name, num_kept):
    """Bytes for each trainable parameter: moments, the rounding error or a copy in float32."""
    transform = adamw(state_dtype="bfloat16", parameter_rounding=name)
    model = tiny_model.model()
    state = jax.eval_shape(lambda params: programs.init_optimizer(params, recipe(transform, VISION)), model.params)
    arrays = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    trainable = sum(leaf.size for leaf in jax.tree.leaves(model.params["text"]))
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in arrays) == num_kept * trainable


def test_the_compiled_programs_need_less_memory():
    """The update needs less by both moments and the gradient in its arguments; the gradient by its size and by the
    allocations of the backward pass through the tower."""
    vision = num_bytes(tiny_model.model().params["vision"])
    frozen, whole = (
        learner(patterns)._update(fresh_state(patterns))._future.result().memory_analysis() for patterns in (VISION, ())
    )
    assert whole.argument_size_in_bytes - frozen.argument_size_in_bytes == 3 * vision
    params = tiny_model.model().params
    frozen, whole = (learner(p)._gradient(params)._future.result().memory_analysis() for p in (VISION, ()))
    assert whole.argument_size_in_bytes - frozen.argument_size_in_bytes == vision
    assert whole.temp_size_in_bytes > frozen.temp_size_in_bytes
    print(f"vision {vision}: arguments {whole.argument_size_in_bytes} -> {frozen.argument_size_in_bytes}, "
          f"temporary {whole.temp_size_in_bytes} -> {frozen.temp_size_in_bytes}")  # fmt: skip


def test_a_checkpoint_gives_the_frozen_run_back(tmp_path):
    state, _ = updated(VISION)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, jax.tree.map(jnp.asarray, state), {})
    _, restored, _ = checkpoints.restore(fresh_state(VISION))
    checkpoints.close()
    assert equal(restored, state)


# ---------------------------------------------------------------- patterns


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("vision/**", "vision/blocks/mlp/fc1/kernel", True),
        ("vision/**", "vision", True),
        ("vision/**", "text/vision/x", False),
        ("vision/*", "vision/blocks/mlp", False),
        ("vision", "vision/blocks", False),
        ("text/embed", "text/embed", True),
        ("text/embed", "text/embedding", False),
        ("**/*norm/**", "text/full/input_norm/weight", True),
        ("**/kernel", "kernel", True),
        ("**/kernel", "text/kernel/bias", False),
        ("**", "a/b/c", True),
        ("text/**/mixer/**/kernel", "text/full/mixer/q/kernel", True),
        ("text/**/mixer/**/kernel", "text/full/mlp/q/kernel", False),
        ("text/[lf]*/mixer/**", "text/full/mixer/q", True),
        ("Text/**", "text/embed", False),
        ("*/embed", "text/embed", True),
        ("*", "text/embed", False),
    ],
)
def test_the_rule_of_patterns(pattern, path, expected):
    assert freeze.matches(path, pattern) is expected


def test_the_halves_make_the_whole():
    params = {"text": {"embed": 1, "norm": {"weight": 2}}, "vision": {"blocks": {"kernel": 3}}}
    trainable, frozen = freeze.split(params, ("vision/**", "text/embed"))
    assert trainable == {"text": {"norm": {"weight": 2}}}
    assert frozen == {"text": {"embed": 1}, "vision": {"blocks": {"kernel": 3}}}
    assert freeze.merge(trainable, frozen) == params
    assert freeze.split(params, ()) == (params, {}) and freeze.merge(params, {}) == params


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (("vision/**", "vison/**"), ["'vison/**' matches no parameter", "vision/", "more"]),
        (("vision",), ["'vision' matches no parameter", "frozen by 'vision/**'"]),
        (("text/linear/mixer/qvk/kernel",), ["matches no parameter", "text/linear/mixer/qkv/kernel"]),
        (("",), ["'' matches no parameter"]),
        (("**",), ["freezes all", "leave some to train"]),
        (("text/**", "vision/**"), ["'text/**,vision/**' freezes all"]),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(patterns, words):
    with pytest.raises(ConfigError) as caught:
        one = recipe(adamw(), patterns)
        dataclasses.replace(tiny_model.learner(), recipe=one).init(tiny_model.model().params)
    message = str(caught.value)
    assert message.startswith("optimizer.freeze = ") and "\n" not in message
    assert all(word in message for word in words), message
