"""The samplers of a configuration: student, teacher and compressor."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from jax.sharding import Mesh

from zppo_jax import parallel
from zppo_jax.compilation import Compiler
from zppo_jax.config import Config
from zppo_jax.models import qwen3_5
from zppo_jax.rollout import memory
from zppo_jax.rollout.engine import Engine
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.kept import Kept
from zppo_jax.rollout.lane import Lane
from zppo_jax.rollout.shapes import Shapes
from zppo_jax.setup.devices import decoding_mesh

BUSY_TOKENS = 16_384
"""The most prompt tokens that a device runs at once: more would not make its products faster, only take memory."""


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
    lane: Lane | None = None,
) -> Engine:
    """Makes an engine. Slots: as requested, at most what cache memory holds. Prompts per prefill call: enough groups to
    fill the slots, a multiple of the prefilling devices (otherwise each computes all of them), at most BUSY_TOKENS per
    device."""
    chosen, dtypes = config.rollout, (config.model.dtype, config.rollout.state_dtype)
    with parallel.use(mesh):
        num_slots = memory.plan(model, shapes, chosen.slots, 1e9 * chosen.cache_gigabytes, dtypes)
    with parallel.use(compiler.mesh):
        shares = parallel.num_shards("batch")
    share = math.ceil(max(num_slots // chosen.group_size, 1) / shares)
    prompts = min(share, max(BUSY_TOKENS // max(shapes.buckets), 1)) * shares
    settings = (name, chosen.chunk, *dtypes)
    return Engine(model, shapes, num_slots, prompts, banned_V, compiler, *settings, report=report, mesh=mesh, lane=lane)


def student_engine(
    config: Config,
    model: qwen3_5.Config,
    banned_V: np.ndarray,
    sampler: Compiler,
    report: Callable[[str], None] | None = None,
) -> Engine:
    """The student's engine, on the devices of `sampler`."""
    mesh = decoding_mesh(sampler, config.rollout.mesh, "rollout.mesh", model)
    return engine_of(config, model, banned_V, sampler, shapes_of_prompts(config, model), mesh, report=report)


def training_sampling(config: Config) -> Sampling:
    """The sampling settings of the student's rollouts."""
    return Sampling(config.rollout.temperature, config.rollout.top_k, config.rollout.top_p)


def teacher_sampling(config: Config) -> Sampling:
    """The sampling settings of the teacher's responses."""
    return Sampling(config.teacher.temperature, top_p=config.teacher.top_p)


def evaluation_sampling(config: Config) -> Sampling:
    """The sampling settings of an evaluation's responses."""
    chosen = config.eval
    return Sampling(
        temperature=chosen.temperature,
        top_k=chosen.top_k,
        top_p=chosen.top_p,
        min_p=chosen.min_p,
        repetition_penalty=chosen.repetition_penalty,
        presence_penalty=chosen.presence_penalty,
    )


def evaluation_engine(config: Config, student: Engine) -> Engine:
    """The engine of an evaluation: the student's, unless the evaluation has penalties. Then it is a second engine whose
    slots remember tokens, so that training does not pay for that. Weights, features and prefilled prompts are the
    student's; a slot takes two bytes more for each token of the vocabulary, which `rollout.cache_gigabytes` does not
    count."""
    return dataclasses.replace(student, penalises=True) if evaluation_sampling(config).penalises else student


def prepare_student(
    config: Config, params: dict[str, Any], student: Engine, evaluation: Engine, buckets: Iterable[int] | None = None
) -> None:
    """Starts compiling the programs of the evaluation, which comes first, and of the rollouts; `buckets` are those of
    held-out prompts (None: all). `params` may be shapes."""
    rollouts, held_out = training_sampling(config), evaluation_sampling(config)
    if evaluation is student:
        student.prepare(params, (rollouts, held_out))
        return
    evaluation.prepare(params, (held_out,), buckets)
    student.prepare(params, (rollouts,))


def teacher_compiler(config: Config, compiler: Compiler, model: qwen3_5.Config, float8: bool) -> Compiler:
    """The compiler on the mesh of the teacher's parameters: that of its devices, or if they stay `float8`, that of its
    decoding, which then reads them without a copy."""
    return compiler.on(decoding_mesh(compiler, config.teacher.mesh, "teacher.mesh", model)) if float8 else compiler


def teacher_engine(
    config: Config,
    model: qwen3_5.Config,
    banned_V: np.ndarray,
    student: Engine,
    compiler: Compiler,
    float8: bool = False,
) -> Engine:
    """The teacher's engine on the compiler's devices: the student's, or others, whose work is then done in a lane.

    `float8` says whether its kernels stay float8. A teacher of the student's architecture, on the same mesh, shares its
    compiled programs otherwise."""
    mesh = decoding_mesh(compiler, config.teacher.mesh, "teacher.mesh", model)
    shares = compiler is student.compiler
    if shares and not float8 and (model, mesh) == (student.config, student.mesh):
        return dataclasses.replace(student, kept=Kept())
    lane = None if shares else Lane(student.report)
    report = student.report if lane is None or student.report is None else lane.note
    place = teacher_compiler(config, compiler, model, float8)
    return engine_of(config, model, banned_V, place, student.shapes, mesh, "teacher's ", report, lane)


def compressor_engine(config: Config, teacher: Engine) -> Engine:
    """The teacher's engine with prompts that hold a whole response, and the few new tokens of a candidate."""
    longest = max(*config.prompt.buckets, config.rollout.max_new_tokens + 512)
    tokens = config.teacher.compress.max_tokens
    shapes = dataclasses.replace(teacher.shapes, buckets=(longest,), max_new_tokens=tokens)
    names = (f"{teacher.name}compressor's ", teacher.report, teacher.lane)
    return engine_of(config, teacher.config, teacher.banned_V, teacher.compiler, shapes, teacher.mesh, *names)


def judge_engine(config: Config, teacher: Engine, frame_tokens: int) -> Engine:
    """The teacher's engine with prompts for the judge: a frame of `frame_tokens`, a question, a gold of 512 tokens, and
    the content of a box or a whole response; and the new tokens of a verdict."""
    buckets, longest_response = config.prompt.buckets, config.rollout.max_new_tokens
    short, long = (frame_tokens + 512 + rest for rest in (buckets[0] + 256, buckets[-1] + longest_response))
    lengths = (short, long) if short < long else (long,)
    shapes = dataclasses.replace(teacher.shapes, buckets=lengths, max_new_tokens=config.judge.max_tokens)
    names = (f"{teacher.name}judge's ", teacher.report, teacher.lane)
    return engine_of(config, teacher.config, teacher.banned_V, teacher.compiler, shapes, teacher.mesh, *names)
