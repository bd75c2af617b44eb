"""Whether the teacher fits the devices that it would work on, before its weights are read."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from zppo_jax import parallel
from zppo_jax.compilation import Compiler
from zppo_jax.config import Config
from zppo_jax.errors import ConfigError
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import hf, quantised, vlm
from zppo_jax.rollout import memory
from zppo_jax.rollout.engine import Engine
from zppo_jax.setup import engines


def ways_out(config: Config) -> str:
    """What to do about a teacher that does not fit."""
    own = config.teacher.devices
    with_devices = f"raise teacher.devices = {own}" if own else "give it separate devices, teacher.devices=N"
    return (
        "have it served by other machines, teacher.path=http://HOST:PORT/v1, or take answers that were recorded, "
        f"teacher.path=recorded:DIR, or {with_devices}"
    )


def placed_model(config: Config, model: qwen3_5.Config, float8: frozenset[str] = frozenset()) -> qwen3_5.Model:
    """The shapes of a model that a run only reads, on the mesh in use; the kernels `float8` stay so."""
    params = hf.abstract_params(model, config.model.dtype, float8)
    axes = quantised.with_scales(vlm.logical_axes(model), params)
    return qwen3_5.Model(model, parallel.placed_shapes(params, axes))


def require_room(
    config: Config,
    model: qwen3_5.Config,
    student: Engine,
    compiler: Compiler,
    float8: frozenset[str] = frozenset(),
    free: float | None = None,
) -> None:
    """Raises ConfigError, with the numbers and the ways out, if the teacher does not fit the compiler's devices.

    `free` are the bytes that are left on the fullest of them, by default what the devices say (CPUs say nothing, and
    nothing is refused there). Temporaries are not counted: a teacher that is refused could not work.
    """
    if free is None:
        devices = () if compiler.mesh is None else compiler.mesh.local_devices
        free = memory.least_free(devices) if devices else math.inf
    if math.isinf(free):
        return
    needs = needed(config, model, student, compiler, float8)
    if (total := sum(needs.values())) > free:
        parts = ", ".join(f"{name} {size / 1e9:.3g}" for name, size in needs.items())
        beside = "" if config.teacher.devices else " beside the student"
        raise ConfigError(
            f"teacher.path = {config.teacher.path!r} does not fit: it needs {total / 1e9:.3g} GB of each device "
            f"({parts}), and {max(free, 0) / 1e9:.3g} GB are left{beside}: {ways_out(config)}"
        )


def needed(
    config: Config,
    model: qwen3_5.Config,
    student: Engine,
    compiler: Compiler,
    float8: frozenset[str] = frozenset(),
) -> Mapping[str, int]:
    """Bytes of each device that the teacher takes at least, by part: weights, the copies of them that decode, and the
    cache of one response (for each part of the mesh that has separate rows)."""
    unbanned_V = np.zeros(model.text.vocab_size, bool)
    engine = engines.teacher_engine(config, model, unbanned_V, student, compiler, bool(float8))
    with parallel.use(engine.compiler.mesh):
        params = placed_model(config, model, float8).params
    with parallel.use(engine.mesh):
        dtypes = engine.key_dtype or config.model.dtype, engine.state_dtype
        cache = memory.device_bytes(model, parallel.num_shards("batch"), engine.shapes.num_keys, dtypes)
    return {
        "weights": parallel.device_bytes(params),
        "decoding copies": engine.resident_bytes(params, 0)["weights"],
        "the cache of a response": cache,
    }
