"""The learner of a configuration, and its optimiser."""

from __future__ import annotations

import functools
from typing import cast

import optax

from zppo_jax.compilation import Compiler
from zppo_jax.config import Config
from zppo_jax.config.schema import OptimizerConfig
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5.layers import Remat
from zppo_jax.ops.gated_delta import longest_chunk
from zppo_jax.parallel import Hosts
from zppo_jax.rollout.engine import Engine
from zppo_jax.setup.devices import num_rows
from zppo_jax.update import optimizer, rows
from zppo_jax.update.learner import Learner, Settings
from zppo_jax.update.step import Objective


def learner_of(
    config: Config, model: qwen3_5.Config, engine: Engine, compiler: Compiler, hosts: Hosts | None = None
) -> Learner:
    update, sizes, hosts = config.update, engine.shapes, hosts or Hosts()
    settings = Settings(
        num_minibatches=update.num_minibatches,
        inner_epochs=update.inner_epochs,
        normalisation=config.advantage.normalisation,
        scope=config.advantage.scope,
        eps=config.advantage.eps,
        old_logprobs=config.update.old_logprobs,
    )
    remat = cast(Remat, config.model.remat)
    objective = Objective(update.clip_low, update.clip_high, update.dual_clip, config.rollout.temperature, remat)
    return Learner(
        model,
        rows.shapes(
            num_rows(config, compiler.mesh, hosts),
            update.row_tokens,
            update.prompts_per_row,
            sizes.buckets[-1],
            sizes.max_new_tokens,
            sizes.patch_slots,
            longest_chunk(model.text.linear_key_head_dim),
        ),
        settings,
        objective,
        transform_of(config),
        engine.banned_V,
        compiler,
        config.optimizer.freeze,
        hosts,
    )


def transform_of(config: Config) -> optax.GradientTransformation:
    constant = config.optimizer.schedule == "constant"  # then the rate does not know the length of the run
    num_steps = 0 if constant else config.num_steps
    return _adamw(config.optimizer, num_steps, config.update.num_minibatches * config.update.inner_epochs)


@functools.cache
def _adamw(chosen: OptimizerConfig, num_steps: int, updates_per_step: int) -> optax.GradientTransformation:
    """Cached, because its identity is a part of the compiled update: a second run in a process traces nothing anew."""
    counts = (chosen.warmup_steps * updates_per_step, num_steps * updates_per_step)  # optax counts updates
    rate = optimizer.learning_rate(chosen.schedule, chosen.learning_rate, *counts)
    return optimizer.adamw(
        rate,
        chosen.b1,
        chosen.b2,
        chosen.eps,
        chosen.weight_decay,
        chosen.grad_clip,
        chosen.state_dtype,
        chosen.parameter_rounding,
    )
