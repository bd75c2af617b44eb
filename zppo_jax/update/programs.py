"""Gradients of micro-batches and the update from their sum: pure functions, two compiled programs per run.

Each group's prompt is run once for all its rollouts; gradients flow back from every branch into it and into the vision
tower.

Shape suffixes: B rows, T slots, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from zppo_jax import parallel
from zppo_jax.models.qwen3_5 import quantised, text, vlm
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.models.qwen3_5.layers import Remat
from zppo_jax.update import freeze, losses
from zppo_jax.update.objective import ModelOutput, Objective

State = dict[str, Any]
Sums = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The static settings of an update: one static argument of every program.

    Attributes:
      model: the student's architecture.
      objective: the loss to minimise.
      transform: the optimiser.
      temperature: the sampler's temperature, whose distribution the log-probabilities are of.
      frozen_patterns: the parameters that do not change (freeze.py).
      remat: what the backward pass recomputes instead of keeping.
      reference: the architecture of the reference model, if the objective needs one.
    """

    model: Config
    objective: Objective
    transform: optax.GradientTransformation
    temperature: float
    frozen_patterns: tuple[str, ...] = ()
    remat: Remat = "none"
    reference: Config | None = None


def output_of(
    params: dict[str, Any],
    model: Config,
    micro: dict[str, Any],
    temperature: float,
    banned_V: jax.Array,
    remat: Remat = "none",
) -> ModelOutput:
    """The output of a model on a micro-batch."""
    return ModelOutput(vlm.run_tree(params, model, micro, remat), text.head(params["text"]), temperature, banned_V)


@functools.partial(jax.jit, static_argnums=(1, 3))
def logprobs(params: dict[str, Any], model: Config, micro: dict[str, Any], temperature: float, banned_V: jax.Array):
    """Computes the trainer's log-probabilities [B, T] of one micro-batch, whole on every device."""
    output = output_of(params, model, micro, temperature, banned_V)
    return parallel.constrain(output.logprobs(micro["target_BT"]), None, None)


def _loss_sum(trainable, frozen, reference, recipe: Recipe, micro: dict[str, Any], banned_V: jax.Array):
    params = freeze.merge(trainable, frozen)
    student = output_of(params, recipe.model, micro, recipe.temperature, banned_V, recipe.remat)
    other = None
    if recipe.reference is not None:
        other = output_of(reference, recipe.reference, micro, recipe.temperature, banned_V)
    sums = recipe.objective(student, other, micro)
    return sums["loss"], sums | {"tokens": jnp.sum(micro["counted_BT"], dtype=jnp.float32)}


@functools.partial(jax.jit, static_argnums=1)
def zero_sums(params: dict[str, Any], recipe: Recipe) -> Sums:
    """The zero sums to start from: {"gradient" of the trainable parameters, float32, "metrics"}."""
    trainable, _ = freeze.split(params, recipe.frozen_patterns)
    gradient = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), trainable)
    metrics = {name: jnp.float32(0.0) for name in (*(one.name for one in recipe.objective.sums), "tokens")}
    return _sums_in_place({"gradient": gradient, "metrics": metrics}, recipe)


@functools.partial(jax.jit, static_argnums=3, donate_argnums=0)
def add_gradient(
    sums: Sums,
    params: dict[str, Any],
    reference: dict[str, Any] | None,
    recipe: Recipe,
    micro: dict[str, Any],
    banned_V: jax.Array,
) -> Sums:
    """Adds the gradient of one micro-batch's loss, summed over its tokens, and its metrics; `sums` are donated.

    No gradient is computed or kept for the frozen parameters, nor for the `reference` model's (None without one).
    Token sums are added up and divided once, so splitting and packing a mini-batch changes only rounding.
    """
    trainable, frozen = freeze.split(params, recipe.frozen_patterns)
    gradient, metrics = jax.grad(_loss_sum, has_aux=True)(trainable, frozen, reference, recipe, micro, banned_V)
    new = jax.tree.map(jnp.add, sums, {"gradient": gradient, "metrics": metrics})
    return _sums_in_place(new, recipe)


@functools.partial(jax.jit, static_argnums=1, donate_argnums=0)
def update(state: State, recipe: Recipe, sums: Sums, num_tokens: jax.Array) -> tuple[State, dict[str, jax.Array]]:
    """Makes one optimiser step on the token mean of `sums`. `state` is {"params", "optimizer"} and is donated. Returns
    the new state and scalars.

    The optimiser, its clipping and its weight decay see only the trainable parameters. If the loss or the gradient is
    not finite, nothing changes, not even the number of updates, and "skipped" is 1: one such step would make every
    parameter NaN permanently.
    """
    gradient = jax.tree.map(lambda g: g / jnp.maximum(num_tokens, 1.0), sums["gradient"])
    computed = sums["metrics"]["tokens"]
    metrics = losses.means(recipe.objective.sums, sums["metrics"], num_tokens, computed)
    metrics |= {"tokens": computed, "grad_norm": optax.tree.norm(gradient)}
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    new = optimized(state, gradient, recipe)
    state = jax.tree.map(functools.partial(jnp.where, finite), new, state)
    metrics["skipped"] = 1.0 - finite.astype(jnp.float32)
    return in_place(state, recipe), metrics


def optimized(state: State, gradient: Any, recipe: Recipe) -> State:
    """The state after a step of the optimiser along the gradient of the trainable parameters."""
    trainable, frozen = freeze.split(state["params"], recipe.frozen_patterns)
    changes, optimizer = recipe.transform.update(gradient, state["optimizer"], trainable)
    params = freeze.merge(optax.apply_updates(trainable, changes), frozen)
    return in_place({"params": params, "optimizer": optimizer}, recipe)


@functools.partial(jax.jit, static_argnums=1)
def init_optimizer(params: dict[str, Any], recipe: Recipe) -> Any:
    """Makes a fresh optimiser state, each part with the sharding of its parameter."""
    quantised.require_plain(params, "cannot be trained")
    trainable, _ = freeze.split(params, recipe.frozen_patterns)
    return in_place({"params": params, "optimizer": recipe.transform.init(trainable)}, recipe)["optimizer"]


def in_place(state: State, recipe: Recipe) -> State:
    """Constrains every array of the state to the sharding of the rules, which on a mesh the compiler may change."""
    return parallel.constrain_tree(state, state_axes(state, recipe))


def state_axes(state: State, recipe: Recipe) -> State:
    """The logical names of the axes of a state; the optimiser's arrays are sharded like their parameters."""
    axes = vlm.logical_axes(recipe.model)
    trainable_axes, _ = freeze.split(axes, recipe.frozen_patterns)
    optimizer_axes = optax.tree.map_params(
        recipe.transform, lambda _, names: names, state["optimizer"], trainable_axes, transform_non_params=lambda _: ()
    )
    return {"params": axes, "optimizer": optimizer_axes}


def sums_axes(sums: Sums, recipe: Recipe) -> Sums:
    """The logical names of the axes of sums: a gradient is sharded like its parameter."""
    trainable_axes, _ = freeze.split(vlm.logical_axes(recipe.model), recipe.frozen_patterns)
    return {"gradient": trainable_axes, "metrics": dict.fromkeys(sums["metrics"], ())}


def _sums_in_place(sums: Sums, recipe: Recipe) -> Sums:
    return parallel.constrain_tree(sums, sums_axes(sums, recipe))
