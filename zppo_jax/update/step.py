"""Gradients of micro-batches and the update that they add up to: pure functions, two compiled programs for the run.

Each group's prompt is run once for all its rollouts; gradients flow back through every branch into it and into the
vision tower.

Shape suffixes: B rows, T slots, D model, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from zppo_jax import parallel
from zppo_jax.models.qwen3_5 import text, vlm
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.models.qwen3_5.layers import Remat
from zppo_jax.ops.logprobs import target_logprobs
from zppo_jax.update import freeze, losses

State = dict[str, Any]
Sums = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Objective:
    """Static settings of the policy loss; `temperature` is the sampling temperature of the rollouts, `remat` what the
    backward pass computes anew."""

    clip_low: float
    clip_high: float
    dual_clip: float
    temperature: float
    remat: Remat = "none"


def target_logprobs_of(
    params: dict[str, Any],
    config: Config,
    micro: dict[str, Any],
    temperature: float,
    banned_V: jax.Array,
    remat: Remat = "none",
) -> jax.Array:
    """Log-probabilities [B, T] of the targets under the sampler's own distribution; of use where a slot is counted."""
    hidden_BTD = vlm.run_tree(params, config, micro, remat)
    head_VD, target_BT = text.head(params["text"]), micro["target_BT"]
    return target_logprobs(hidden_BTD, head_VD, target_BT, temperature, banned_V)


@functools.partial(jax.jit, static_argnums=(1, 3))
def logprobs(params: dict[str, Any], config: Config, micro: dict[str, Any], temperature: float, banned_V: jax.Array):
    """The trainer's log-probabilities [B, T] of one micro-batch, whole on every device."""
    return parallel.constrain(target_logprobs_of(params, config, micro, temperature, banned_V), None, None)


def _loss_sum(trainable, frozen, config: Config, objective: Objective, micro: dict[str, Any], banned_V: jax.Array):
    params = freeze.merge(trainable, frozen)
    new_BT = target_logprobs_of(params, config, micro, objective.temperature, banned_V, objective.remat)
    sums = losses.surrogate_sums(
        new_BT,
        micro["old_logprobs_BT"],
        micro["advantages_BT"],
        micro["counted_BT"],
        objective.clip_low,
        objective.clip_high,
        objective.dual_clip,
    )
    return sums["loss"], sums


@functools.partial(jax.jit, static_argnums=(1, 2))
def zero_sums(params: dict[str, Any], config: Config, frozen_patterns: tuple[str, ...]) -> Sums:
    """The sums of no micro-batch: {"gradient" of the trainable parameters, float32, "metrics"}."""
    trainable, _ = freeze.split(params, frozen_patterns)
    gradient = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), trainable)
    return _sums_in_place({"gradient": gradient, "metrics": losses.no_sums()}, config, frozen_patterns)


@functools.partial(jax.jit, static_argnums=(2, 3, 4), donate_argnums=0)
def add_gradient(
    sums: Sums,
    params: dict[str, Any],
    config: Config,
    objective: Objective,
    frozen_patterns: tuple[str, ...],
    micro: dict[str, Any],
    banned_V: jax.Array,
) -> Sums:
    """Adds the gradient of one micro-batch's loss, summed over its tokens, and its metrics; `sums` are donated.

    Nothing is computed or kept for the frozen parameters. Token sums are added up and divided once, so how a mini-batch
    is cut and packed changes nothing but rounding.
    """
    trainable, frozen = freeze.split(params, frozen_patterns)
    gradient, metrics = jax.grad(_loss_sum, has_aux=True)(trainable, frozen, config, objective, micro, banned_V)
    new = jax.tree.map(jnp.add, sums, {"gradient": gradient, "metrics": metrics})
    return _sums_in_place(new, config, frozen_patterns)


@functools.partial(jax.jit, static_argnums=(1, 2, 3), donate_argnums=0)
def update(
    state: State,
    config: Config,
    transform: optax.GradientTransformation,
    frozen_patterns: tuple[str, ...],
    sums: Sums,
    num_tokens: jax.Array,
) -> tuple[State, dict[str, jax.Array]]:
    """One optimiser step on the token mean of `sums`. `state` is {"params", "optimizer"} and is donated. Returns the
    new state and scalars.

    The optimiser, its clipping and its weight decay see the trainable parameters only. Where the loss or the gradient
    is not finite, nothing changes, not even the number of updates, and "skipped" is 1: one such step would make every
    parameter NaN for good.
    """
    gradient = jax.tree.map(lambda g: g / jnp.maximum(num_tokens, 1.0), sums["gradient"])
    metrics = losses.means(sums["metrics"], num_tokens) | {"grad_norm": optax.tree.norm(gradient)}
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    new = optimized(state, gradient, config, transform, frozen_patterns)
    state = jax.tree.map(functools.partial(jnp.where, finite), new, state)
    metrics["skipped"] = 1.0 - finite.astype(jnp.float32)
    return in_place(state, config, transform, frozen_patterns), metrics


def optimized(
    state: State,
    gradient: Any,
    config: Config,
    transform: optax.GradientTransformation,
    frozen_patterns: tuple[str, ...],
) -> State:
    """The state after a step of the optimiser along the gradient of the trainable parameters."""
    trainable, frozen = freeze.split(state["params"], frozen_patterns)
    changes, optimizer = transform.update(gradient, state["optimizer"], trainable)
    params = freeze.merge(optax.apply_updates(trainable, changes), frozen)
    return in_place({"params": params, "optimizer": optimizer}, config, transform, frozen_patterns)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def init_optimizer(
    params: dict[str, Any], config: Config, transform: optax.GradientTransformation, frozen_patterns: tuple[str, ...]
) -> Any:
    """A fresh optimiser state, each part of it where the parameter lies that it belongs to."""
    trainable, _ = freeze.split(params, frozen_patterns)
    state = {"params": params, "optimizer": transform.init(trainable)}
    return in_place(state, config, transform, frozen_patterns)["optimizer"]


def in_place(
    state: State, config: Config, transform: optax.GradientTransformation, frozen_patterns: tuple[str, ...]
) -> State:
    """The state with every array where the rules put it, which on a mesh the compiler is free to forget."""
    return parallel.constrain_tree(state, state_axes(state, config, transform, frozen_patterns))


def state_axes(
    state: State, config: Config, transform: optax.GradientTransformation, frozen_patterns: tuple[str, ...]
) -> State:
    """Logical names of the axes of a state; what belongs to a parameter lies where it lies."""
    axes = vlm.logical_axes(config)
    trainable_axes, _ = freeze.split(axes, frozen_patterns)
    optimizer_axes = optax.tree.map_params(
        transform, lambda _, names: names, state["optimizer"], trainable_axes, transform_non_params=lambda _: ()
    )
    return {"params": axes, "optimizer": optimizer_axes}


def sums_axes(sums: Sums, config: Config, frozen_patterns: tuple[str, ...]) -> Sums:
    """Logical names of the axes of sums: a gradient lies where its parameter lies."""
    trainable_axes, _ = freeze.split(vlm.logical_axes(config), frozen_patterns)
    return {"gradient": trainable_axes, "metrics": dict.fromkeys(sums["metrics"], ())}


def _sums_in_place(sums: Sums, config: Config, frozen_patterns: tuple[str, ...]) -> Sums:
    return parallel.constrain_tree(sums, sums_axes(sums, config, frozen_patterns))
