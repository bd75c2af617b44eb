"""The memory of a device outside the program that runs: a run keeps more than any one of its programs takes.

Training: the optimiser, the teacher and a reference model stay in memory while the gradient is computed. Sampling: the
slots and the decoding weights stay while a prompt is prefilled, and features of images are kept for a question's next
prompt. With several hosts each also holds a copy of the parameters to sample with, besides its part of the original. A
teacher with separate devices is alone on them.
"""

from __future__ import annotations

import math
import re
from typing import Any

from zppo_jax import parallel
from zppo_jax.aot.programs import Programs, Shapes
from zppo_jax.config import Config
from zppo_jax.models.qwen3_5 import decode_weights
from zppo_jax.rollout.engine import Engine

KINDS = {
    "zero gradient": "zeros",
    "gradient": "gradient",
    "update": "update",
    "log-probabilities": "logprobs",
    "prefill": "prefill",
    "fill": "fill",
    "decode": "decode",
    "weights": "weights",
    "vision": "vision",
}
"""The kind of a program, by the first of these words that is in its name."""

TRAINING = ("zeros", "gradient", "update", "logprobs")

_TAKEN = {
    "gradient": ("params", "reference"),
    "logprobs": ("params",),
    "update": ("params", "optimizer"),
    "vision": ("sampled vision",),
    "weights": ("sampled text", "sampled head"),
    "prefill": ("sampled text", "sampled stacks"),
    "fill": ("slots", "prompts"),
    "decode": ("weights", "sampled stacks", "slots"),
}
"""The parts that are arguments of a program by its kind: the compiler counts them."""

_NOT_YET = {"weights": ("weights", "slots", "prompts"), "prefill": ("prompts",), "vision": ("prompts",)}
"""The parts that do not exist yet, or no longer, while a program of this kind runs."""


def kind_of(name: str) -> str:
    """The kind of a program, without the sampler that it belongs to."""
    return next(kind for word, kind in KINDS.items() if word in name)


def beside(config: Config, run: Shapes, programs: Programs, name: str) -> int:
    """Bytes on a device that the run holds while the program runs, without the program's arguments."""
    kind, held = kind_of(name), {part: run.bytes_of(part) for part in ("params", "optimizer", "teacher", "reference")}
    if run.teacher_mesh is not None:
        held = {} if _is_teachers(programs, name) else held | {"teacher": 0}
    if kind not in TRAINING:
        held |= {"features": _features(config, run, programs, name)} | _sampling(run, programs, name)
    absent = (*_TAKEN.get(kind, ()), *_NOT_YET.get(kind, ()))
    return sum(size for part, size in held.items() if part not in absent)


def _is_teachers(programs: Programs, name: str) -> bool:
    return kind_of(name) not in TRAINING and not programs.is_students(programs.engine_of(name))


def _params(run: Shapes, programs: Programs, engine: Engine) -> dict[str, Any]:
    return run.teacher.params if run.teacher and not programs.is_students(engine) else run.sampled


def _sampling(run: Shapes, programs: Programs, name: str) -> dict[str, int]:
    """Bytes that a sampler holds, by part: its parameters in parts, and the arrays kept between programs."""
    engine = programs.engine_of(name)
    params, is_students = _params(run, programs, engine), programs.is_students(engine)
    resident = engine.resident_bytes(params, bucket_of(engine, name))
    text = dict(params["text"])
    stacks = {} if engine.moves else decode_weights.uncopied(text, engine.num_slots).get("stacks", {})
    parts = {"sampled vision": params["vision"], "sampled head": text.pop("lm_head", {}), "sampled stacks": stacks}
    parts |= {"sampled text": text}
    held = {part: parallel.device_bytes(shapes) for part, shapes in parts.items()}
    held["sampled text"] -= held["sampled stacks"]
    held |= {part: resident[part] for part in ("weights", "slots", "prompts")}
    copied = run.hosts.count > 1
    if is_students:
        return held | ({} if copied else {"params": 0})
    copy = parallel.device_bytes(run.sampled) if copied and run.teacher_mesh is None else 0
    return held | {"teacher": 0, "student's copy": copy}


def bucket_of(engine: Engine, name: str) -> int:
    """The index of the bucket of prompts that a program works with: the longest, if several share it."""
    found, buckets = re.search(r"(\d+) (tokens|keys)(?: after (\d+) tokens)?", name), engine.shapes.buckets
    if found is None:
        return len(buckets) - 1
    if found[2] == "tokens" or found[3]:
        return buckets.index(int(found[3] or found[1]))
    return max(index for index in range(len(buckets)) if engine.shapes.ring_of(index) == int(found[1]))


def _features(config: Config, run: Shapes, programs: Programs, name: str) -> int:
    """Bytes of a step's image features: the student's are kept until the update, the teacher's while it answers."""
    total, engine = 0, programs.engine_of(name)
    alone = run.teacher_mesh is not None and _is_teachers(programs, name)
    for keeps in (None if alone else programs.student, engine if engine is programs.teacher else None):
        if keeps is not None:
            a_call = keeps.resident_bytes(_params(run, programs, keeps), 0)["features"]
            calls = math.ceil(config.rollout.questions_per_step / keeps.prompts_per_call)
            total += min(calls * a_call, keeps.kept.features.budget // a_call * a_call)
    return total
