"""The samplers of a configuration: student, teacher and compressor."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from jax.sharding import Mesh

from zppo_jax import parallel
from zppo_jax.compilation import Compiler
from zppo_jax.config import Config
from zppo_jax.models import qwen3_5
from zppo_jax.rollout import memory
from zppo_jax.rollout.engine import Engine
from zppo_jax.rollout.shapes import Shapes
from zppo_jax.rollout.statistics import Statistics
from zppo_jax.rollout.vision import VisionFeatures
from zppo_jax.rollout.weights import HeldWeights
from zppo_jax.setup.devices import decoding_mesh

BUSY_TOKENS = 16_384
"""Of prompts that a device runs at once: more make its products no faster, and only take memory."""


def shapes_of_prompts(config: Config, model: qwen3_5.Config) -> Shapes:
    return Shapes(
        buckets=config.prompt.buckets,
        patch_slots=config.prompt.max_images * config.prompt.max_pixels // model.vision.patch_size**2,
        max_new_tokens=config.rollout.max_new_tokens,
    )


def engine_of(
    config: Config,
    model: qwen3_5.Config,
    banned_V: np.ndarray,
    compiler: Compiler,
    shapes: Shapes,
    mesh: Mesh | None,
    name: str = "",
    report: Callable[[str], None] | None = None,
) -> Engine:
    """As many slots as are asked for and as the memory for caches holds; prompts for a group each, and so many that the
    devices which prefill them have equal shares (else all would compute all), each no more than it needs to be busy."""
    chosen, dtypes = config.rollout, (config.model.dtype, config.rollout.state_dtype)
    with parallel.use(mesh):
        num_slots = memory.plan(model, shapes, chosen.slots, 1e9 * chosen.cache_gigabytes, dtypes)
    with parallel.use(compiler.mesh):
        shares = parallel.num_shards("batch")
    share = math.ceil(max(num_slots // chosen.group_size, 1) / shares)
    prompts = min(share, max(BUSY_TOKENS // max(shapes.buckets), 1)) * shares
    settings = (name, chosen.chunk, *dtypes)
    return Engine(model, shapes, num_slots, prompts, banned_V, compiler, *settings, report=report, mesh=mesh)


def teacher_engine(config: Config, model: qwen3_5.Config, banned_V: np.ndarray, student: Engine) -> Engine:
    """A teacher of the student's architecture, on the same mesh, shares its compiled programs."""
    mesh, compiler = decoding_mesh(student.compiler, config.teacher.mesh, "teacher.mesh"), student.compiler
    if (model, mesh) == (student.config, student.mesh):
        return dataclasses.replace(student, vision=VisionFeatures(), statistics=Statistics(), held=HeldWeights())
    return engine_of(config, model, banned_V, compiler, student.shapes, mesh, "teacher's ", student.report)


def compressor_engine(config: Config, teacher: Engine) -> Engine:
    """The teacher's with prompts that hold a whole response, and the few tokens of a candidate."""
    longest = max(*config.prompt.buckets, config.rollout.max_new_tokens + 512)
    tokens = config.teacher.compress.max_tokens
    shapes = dataclasses.replace(teacher.shapes, buckets=(longest,), max_new_tokens=tokens)
    names = (f"{teacher.name}compressor's ", teacher.report)
    return engine_of(config, teacher.config, teacher.banned_V, teacher.compiler, shapes, teacher.mesh, *names)
