"""The learner of a configuration: its objective, its schedule and its optimiser."""

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
from zppo_jax.update.learner import Learner, Schedule
from zppo_jax.update.objective import OBJECTIVES
from zppo_jax.update.programs import Recipe
from zppo_jax.zppo import get_method


def learner_of(
    config: Config,
    model: qwen3_5.Config,
    engine: Engine,
    compiler: Compiler,
    hosts: Hosts | None = None,
    reference: qwen3_5.Model | None = None,
) -> Learner:
    """Makes the learner; `reference` is the model that the method's objective compares with, on the compiler's mesh."""
    update, sizes, hosts = config.update, engine.shapes, hosts or Hosts()
    num_microbatch_rows = num_rows(config, compiler.mesh, hosts)
    chunk = longest_chunk(model.text.linear_key_head_dim)
    lengths = (update.row_tokens, update.prompts_per_row, sizes.buckets[-1], sizes.max_new_tokens, sizes.patch_slots)
    return Learner(
        recipe=recipe_of(config, model, reference.config if reference else None),
        shapes=rows.shapes(num_microbatch_rows, *lengths, chunk),
        schedule=schedule_of(config),
        banned_V=engine.banned_V,
        compiler=compiler,
        hosts=hosts,
        reference=reference.params if reference else None,
    )


def recipe_of(config: Config, model: qwen3_5.Config, reference: qwen3_5.Config | None = None) -> Recipe:
    """The static settings of the update. Raises ValueError if the method's row contradicts its objective."""
    method = get_method(config.method)
    objective = OBJECTIVES[method.objective](config)
    if not objective.needs_reference == method.reference == (reference is not None):
        raise ValueError(f"method {method.name}: its objective, its row and its models disagree on a reference model")
    if objective.mismatch and method.learns_from == "teacher":
        raise ValueError(
            f"method {method.name}: the objective {method.objective} compares the student with itself as the sampler, "
            "but the teacher samples"
        )
    return Recipe(
        model=model,
        objective=objective,
        transform=transform_of(config),
        temperature=config.rollout.temperature,
        frozen_patterns=config.optimizer.freeze,
        remat=cast(Remat, config.model.remat),
        reference=reference,
    )


def schedule_of(config: Config) -> Schedule:
    """Mini-batches and epochs: one update on the whole batch if the method says so, else the configuration's."""
    if get_method(config.method).whole_batch:
        return Schedule(1, 1, config.update.old_logprobs)
    return Schedule(config.update.num_minibatches, config.update.inner_epochs, config.update.old_logprobs)


def transform_of(config: Config) -> optax.GradientTransformation:
    constant = config.optimizer.schedule == "constant"  # must not depend on num_steps, which may grow
    num_steps = 0 if constant else config.num_steps
    return _adamw(config.optimizer, num_steps, schedule_of(config).num_updates)


@functools.cache
def _adamw(chosen: OptimizerConfig, num_steps: int, updates_per_step: int) -> optax.GradientTransformation:
    """Makes the optimiser. Cached: the compiled update is keyed by its identity, so a second run in the same process
    need not trace again."""
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
