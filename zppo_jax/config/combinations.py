"""Checks for values that are each in range but cannot work together. A check returns the fault as one line, or None."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

from zppo_jax.config import step_size
from zppo_jax.config.addresses import addresses_fault
from zppo_jax.config.schema import Config
from zppo_jax.config.schema_models import DecodingMeshConfig, MeshConfig
from zppo_jax.config.teacher import RECORDED, teacher_place


def _data(config: Config) -> str | None:
    return step_size.data_fault(config.data.num_questions, config.rollout.questions_per_step)


def _minibatches(config: Config) -> str | None:
    count, step = config.update.num_minibatches, config.rollout.questions_per_step
    if count > step:
        return (
            f"update.num_minibatches = {count} is larger than the {step} groups of a step "
            f"(rollout.questions_per_step): lower it to {step} or less"
        )
    if step % count:
        return (
            f"rollout.questions_per_step = {step} is not divisible by update.num_minibatches = {count}: "
            f"use {step - step % count} or {step - step % count + count} questions"
        )
    return None


def _replay_fraction(config: Config) -> str | None:
    return step_size.share_fault("replay.fraction", config.replay.fraction, config.rollout.questions_per_step)


def _augmentation_fraction(config: Config) -> str | None:
    fraction = config.zppo.augmentation_fraction
    return step_size.share_fault("zppo.augmentation_fraction", fraction, config.rollout.questions_per_step)


def _rows(config: Config) -> str | None:
    rows, group = config.rollout.slots, config.rollout.group_size
    if rows < group:
        return (
            f"rollout.slots = {rows} holds less than one group of rollout.group_size = {group}: "
            f"raise it to {group} or more"
        )
    return None


def _pixels(config: Config) -> str | None:
    low, high = config.prompt.min_pixels, config.prompt.max_pixels
    if low > high:
        return f"prompt.min_pixels = {low} is larger than prompt.max_pixels = {high}: lower it to {high} or less"
    return None


def _buckets(config: Config) -> str | None:
    buckets = config.prompt.buckets
    if not buckets or buckets[0] < 1 or any(low >= high for low, high in itertools.pairwise(buckets)):
        return f"prompt.buckets = {buckets} are not prompt lengths: give ascending positive integers, such as 48,192"
    return None


def _row_tokens(config: Config) -> str | None:
    rows, longest = config.update.row_tokens, config.prompt.buckets[-1] + config.rollout.max_new_tokens
    if 0 < rows < longest:
        return (
            f"update.row_tokens = {rows} has no room for the longest prompt of prompt.buckets and a response of "
            f"rollout.max_new_tokens, together {longest}: raise it to {longest} or more, or set 0 for just that"
        )
    return None


def _mesh(config: Config) -> str | None:
    meshes = {"mesh": config.mesh, "rollout.mesh": config.rollout.mesh, "teacher.mesh": config.teacher.mesh}
    faults = (_mesh_sizes(where, mesh) for where, mesh in meshes.items())
    return next(filter(None, faults), None)


def _mesh_sizes(where: str, mesh: MeshConfig) -> str | None:
    sizes = {f"{where}.{name}": size for name, size in dataclasses.asdict(mesh).items()}
    for name, size in sizes.items():
        if size == 0 and not (isinstance(mesh, DecodingMeshConfig) and name.endswith(".tensor")):
            return f"{name} = 0 is not a number of devices: give 1 or more, or -1 for all remaining devices"
    rest = [name for name, size in sizes.items() if size == -1]
    if len(rest) > 1:
        return f"{' and '.join(rest)} = -1 cannot each take all remaining devices: give -1 only once"
    return None


def _rounding(config: Config) -> str | None:
    """bfloat16 values near a weight of 0.02 are 1e-4 apart, so rounding to nearest undoes changes below 5e-5."""
    rate, rounding = config.optimizer.learning_rate, config.optimizer.parameter_rounding
    if config.model.dtype == "bfloat16" and rounding == "nearest" and 0 < rate < 1e-5:
        return (
            f"optimizer.learning_rate = {rate:g} is rounded away in bfloat16 parameters: set "
            "optimizer.parameter_rounding to kahan, master or stochastic, or model.dtype=float32"
        )
    if config.model.dtype == "float32" and rounding != "nearest":
        return (
            f"optimizer.parameter_rounding = {rounding!r} is for bfloat16 parameters and would do nothing for "
            "float32: set optimizer.parameter_rounding=nearest, or model.dtype=bfloat16"
        )
    return None


def _learning_rate(config: Config) -> str | None:
    optimizer = config.optimizer
    if optimizer.schedule != "constant" and optimizer.warmup_steps >= config.num_steps:
        return (
            f"optimizer.warmup_steps = {optimizer.warmup_steps} leaves no step of num_steps = {config.num_steps} "
            f"for the {optimizer.schedule} schedule: lower it to {config.num_steps - 1} or less"
        )
    return None


TEACHER = "teacher"
"""The value of judge.endpoint that means the run's teacher."""


def _recording(config: Config) -> str | None:
    if teacher_place(config) != "recorded":
        return None
    if config.teacher.path == RECORDED:
        return f"teacher.path = {RECORDED!r} names no folder: give recorded:DIR"
    if config.teacher.record:
        return f"teacher.record = {config.teacher.record!r}: teacher.path names a recording already; leave one empty"
    if config.judge.endpoint == TEACHER:
        return "judge.endpoint = 'teacher' is a recording (teacher.path), which judges nothing: name a judge's endpoint"
    return None


def _served_teacher(config: Config) -> str | None:
    teacher = config.teacher
    if teacher_place(config) != "served":
        return None
    otherwise = "a directory or hub id"
    if fault := addresses_fault("teacher.path", teacher.path, otherwise, "ZPPO_TEACHER_API_KEY"):
        return fault
    if not teacher.model:
        return f"teacher.model is empty: name the model to ask at teacher.path = {teacher.path!r}"
    return _deadline(config, "teacher.deadline_seconds", teacher.deadline_seconds)


def _deadline(config: Config, key: str, seconds: float) -> str | None:
    limit = config.watchdog.host_seconds
    if seconds < limit:
        return None
    return (
        f"{key} = {seconds:g} is not below watchdog.host_seconds = {limit:g}, after which the other hosts give up: "
        "lower it"
    )


def _teacher_devices(config: Config) -> str | None:
    if config.teacher.devices and teacher_place(config) != "local":
        return (
            f"teacher.devices = {config.teacher.devices}: the teacher is not in this process (teacher.path = "
            f"{config.teacher.path!r}) and needs no devices: set 0"
        )
    return None


def _judge(config: Config) -> str | None:
    judge = config.judge
    if not judge.endpoint:
        return None
    if judge.endpoint == TEACHER:
        if judge.model:
            return f"judge.model = {judge.model!r} is for an endpoint, and judge.endpoint = 'teacher': leave it empty"
        return None
    if fault := addresses_fault("judge.endpoint", judge.endpoint, repr(TEACHER), "ZPPO_JUDGE_API_KEY"):
        return fault
    if not judge.model:
        return f"judge.model is empty: name the model to ask at judge.endpoint = {judge.endpoint!r}"
    return _deadline(config, "judge.deadline_seconds", judge.deadline_seconds)


COMBINATIONS: tuple[Callable[[Config], str | None], ...] = (
    _data,
    _minibatches,
    _replay_fraction,
    _augmentation_fraction,
    _rows,
    _pixels,
    _buckets,
    _row_tokens,
    _mesh,
    _rounding,
    _learning_rate,
    _recording,
    _served_teacher,
    _teacher_devices,
    _judge,
)
