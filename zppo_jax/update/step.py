"""One gradient update on one mini-batch: pure functions, one compiled program for the whole run.

Each group's prompt is run once; its states and keys are forked to the group's rollouts, and gradients flow back through
the fork into the prompt and the vision tower.

Shape suffixes: M groups, G rollouts, B = M * G rows, R response tokens, D model.
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


@dataclasses.dataclass(frozen=True)
class Objective:
    """Static settings of the policy loss; `temperature` is the sampling temperature of the rollouts, `remat` what the
    backward pass computes anew."""

    clip_low: float
    clip_high: float
    dual_clip: float
    temperature: float
    remat: Remat = "none"


def response_logprobs(
    params: dict[str, Any],
    config: Config,
    micro: dict[str, Any],
    temperature: float,
    banned_V: jax.Array,
    remat: Remat = "none",
) -> jax.Array:
    """Log-probabilities [B, R] of the responses under the sampler's own distribution."""
    num_groups, group_size, length = micro["response_MGR"].shape
    _, cache = vlm.prefill(params, config, micro, remat)
    row_B = jnp.repeat(jnp.arange(num_groups), group_size)
    cache = text.fork_cache(cache, row_B)
    response_BR = micro["response_MGR"].reshape(-1, length)
    fed_BR = jnp.concatenate([micro["last_B"][row_B][:, None], response_BR[:, :-1]], axis=1)
    position_BR = micro["last_position_B"][row_B][:, None] + jnp.arange(length)
    mask_BR = micro["mask_MGR"].reshape(-1, length)
    hidden_BRD, _ = text.run_layers(
        params["text"],
        config.text,
        text.embed(params["text"], fed_BR),
        jnp.broadcast_to(position_BR, (3, *position_BR.shape)),
        mask_BR,
        cache,
        remat=remat,
    )
    return target_logprobs(hidden_BRD, text.head(params["text"]), response_BR, temperature, banned_V)


@functools.partial(jax.jit, static_argnums=(1, 3))
def logprobs(params: dict[str, Any], config: Config, micro: dict[str, Any], temperature: float, banned_V: jax.Array):
    """The trainer's log-probabilities [M, G, R] of one micro-batch, to compare with the sampler's."""
    return response_logprobs(params, config, micro, temperature, banned_V).reshape(micro["response_MGR"].shape)


def _loss_sum(trainable, frozen, config: Config, objective: Objective, micro: dict[str, Any], banned_V: jax.Array):
    params = freeze.merge(trainable, frozen)
    new_BR = response_logprobs(params, config, micro, objective.temperature, banned_V, objective.remat)
    sums = losses.surrogate_sums(
        new_BR,
        micro["old_logprobs_MGR"].reshape(new_BR.shape),
        micro["advantages_MG"].reshape(-1),
        micro["mask_MGR"].reshape(new_BR.shape),
        objective.clip_low,
        objective.clip_high,
        objective.dual_clip,
    )
    return sums["loss"], sums


def accumulate(trainable, frozen, config: Config, objective: Objective, minibatch: dict[str, Any], banned_V: jax.Array):
    """Gradient of the token-mean loss over all micro-batches of a mini-batch, and the sums of its metrics.

    The gradient, in float32, is that of `trainable` alone: nothing is computed or kept for `frozen`.
    Token sums are added up and divided once, so the split in micro-batches changes nothing but rounding.
    """
    gradient_of = jax.grad(_loss_sum, has_aux=True)
    names = ("loss", "clipped", "dual_clipped", "ratio", "kl", "tokens")
    carry = (
        jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), trainable),
        {name: jnp.float32(0.0) for name in names},
    )
    for bucket in minibatch["buckets"]:

        def add(index, carry, arrays=bucket["arrays"]):
            micro = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), arrays)
            gradient, sums = gradient_of(trainable, frozen, config, objective, micro, banned_V)
            return jax.tree.map(jnp.add, carry, (gradient, sums))

        carry = jax.lax.fori_loop(0, bucket["count"], add, carry)
    gradient, sums = carry
    return jax.tree.map(lambda g: g / jnp.maximum(minibatch["num_tokens"], 1.0), gradient), sums


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4), donate_argnums=0)
def update(
    state: State,
    config: Config,
    objective: Objective,
    transform: optax.GradientTransformation,
    frozen_patterns: tuple[str, ...],
    minibatch: dict[str, Any],
    banned_V: jax.Array,
) -> tuple[State, dict[str, jax.Array]]:
    """One optimiser step. `state` is {"params", "optimizer"} and is donated. Returns the new state and scalars.

    The optimiser, its clipping and its weight decay see the trainable parameters only.
    """
    trainable, frozen = freeze.split(state["params"], frozen_patterns)
    gradient, sums = accumulate(trainable, frozen, config, objective, minibatch, banned_V)
    changes, optimizer = transform.update(gradient, state["optimizer"], trainable)
    params = freeze.merge(optax.apply_updates(trainable, changes), frozen)
    metrics = losses.means(sums, minibatch["num_tokens"]) | {"grad_norm": optax.tree.norm(gradient)}
    return in_place({"params": params, "optimizer": optimizer}, config, transform, frozen_patterns), metrics


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
    axes = vlm.logical_axes(config)
    trainable_axes, _ = freeze.split(axes, frozen_patterns)
    optimizer_axes = optax.tree.map_params(
        transform, lambda _, names: names, state["optimizer"], trainable_axes, transform_non_params=lambda _: ()
    )
    return parallel.constrain_tree(state, {"params": axes, "optimizer": optimizer_axes})
