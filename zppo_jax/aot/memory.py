"""What a device holds beside the program that runs: a run keeps more than any one of its programs takes.

Training: the gradient is computed beside the optimiser, and beside the teacher. Sampling: a prompt is prefilled beside
the slots and the weights of decoding, the teacher samples beside the student's weights of decoding (they are made once
a step), and features of images wait for a question's next prompt. With several hosts each samples with a copy of the
parameters, beside its part of the original.
"""

from __future__ import annotations

import math
import re
from typing import Any

from zppo_jax import parallel
from zppo_jax.aot.programs import Programs, Shapes
from zppo_jax.config import Config
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
"""What a program is, by the first of these words in its name."""

TRAINING = ("zeros", "gradient", "update", "logprobs")

_TAKEN = {
    "gradient": ("params",),
    "logprobs": ("params",),
    "update": ("params", "optimizer"),
    "vision": ("own vision",),
    "weights": ("own text", "own head"),
    "prefill": ("own text",),
    "fill": ("slots", "prompts"),
    "decode": ("weights", "slots"),
}
"""Arguments of a program, which the compiler counts."""

_NOT_YET = {"weights": ("weights", "slots", "prompts"), "prefill": ("prompts",), "vision": ("prompts",)}
"""What is not there yet, or not any more."""


def kind_of(name: str) -> str:
    """Without whose it is."""
    return next(kind for word, kind in KINDS.items() if word in name)


def beside(config: Config, run: Shapes, programs: Programs, name: str) -> int:
    """Bytes on a device that the run holds while the program runs, and that are none of its arguments."""
    kind, held = kind_of(name), {part: run.bytes_of(part) for part in ("params", "optimizer", "teacher")}
    if kind not in TRAINING:
        held |= {"features": _features(config, run, programs, name)} | _sampling(run, programs, name)
    absent = (*_TAKEN.get(kind, ()), *_NOT_YET.get(kind, ()))
    return sum(size for part, size in held.items() if part not in absent)


def _params(run: Shapes, programs: Programs, engine: Engine) -> dict[str, Any]:
    return run.teacher[1] if run.teacher and not programs.is_students(engine) else run.sampled


def _sampling(run: Shapes, programs: Programs, name: str) -> dict[str, int]:
    """What a sampler holds: parameters part by part, instead of as a whole, and what lies between programs."""
    engine = programs.engine_of(name)
    params, is_students = _params(run, programs, engine), programs.is_students(engine)
    resident = engine.resident_bytes(params, bucket_of(engine, name))
    text = dict(params["text"])
    own = {"own vision": params["vision"], "own head": text.pop("lm_head", {}), "own text": text}
    held = {part: parallel.device_bytes(shapes) for part, shapes in own.items()}
    held |= {part: resident[part] for part in ("weights", "slots", "prompts")}
    copied = run.hosts.count > 1
    students = programs.student.resident_bytes(run.sampled, 0)["weights"]
    if is_students:
        twin = programs.teacher is not None and programs.teacher.name == programs.student.name
        shared = twin and engine is programs.student  # its calls are larger
        return held | ({} if copied else {"params": 0}) | ({"student's weights": students} if shared else {})
    copy = parallel.device_bytes(run.sampled) if copied else 0
    return held | {"teacher": 0, "student's weights": students, "student's copy": copy}


def bucket_of(engine: Engine, name: str) -> int:
    """Which prompts a program works with: the longest, where several share it."""
    found, buckets = re.search(r"(\d+) (tokens|keys)(?: after (\d+) tokens)?", name), engine.shapes.buckets
    if found is None:
        return len(buckets) - 1
    if found[2] == "tokens" or found[3]:
        return buckets.index(int(found[3] or found[1]))
    return max(index for index in range(len(buckets)) if engine.shapes.ring_of(index) == int(found[1]))


def _features(config: Config, run: Shapes, programs: Programs, name: str) -> int:
    """Features of all images of a step, as far as they are kept: the student's until the update, the teacher's while
    it answers."""
    total, engine = 0, programs.engine_of(name)
    for keeps in (programs.student, engine if engine is programs.teacher else None):
        if keeps is not None:
            a_call = keeps.resident_bytes(_params(run, programs, keeps), 0)["features"]
            calls = math.ceil(config.rollout.questions_per_step / keeps.prompts_per_call)
            total += min(calls * a_call, keeps.kept.features.budget // a_call * a_call)
    return total
