"""The recipe of the warm start: its examples, its steps, and the fingerprint that ties the weights to it.

    python -m zppo_jax.warmstart          # trains student and teacher again, with a progress bar

Shape suffixes: V vocabulary.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from zppo_jax.models.qwen3_5 import config as configs
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.processor import Processor
from zppo_jax.warmstart import examples, supervised, tiny
from zppo_jax.warmstart.examples import Example, Mixture
from zppo_jax.zppo.prompts import TEMPLATES

BUCKETS = (20, 64, 192)
PATCH_SLOTS = 16
MAX_NEW_TOKENS = 16


@dataclasses.dataclass(frozen=True)
class Stage:
    """One supervised training: examples of each kind per step, steps, peak learning rate, seed.

    `habit` is the fraction of a student's plain labels for hidden operations that read; the others use another wrong
    strategy.
    """

    plain: int
    bcq: int
    ncq: int
    num_steps: int
    learning_rate: float
    seed: int
    habit: float = 1.0


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A base trained from scratch, from which student and teacher both continue.

    The student's habit is loosened a little (experiments/tiny_methods compares other values); the teacher learns the
    true meanings of all operations.
    """

    mixture: Mixture = dataclasses.field(default_factory=Mixture)
    base: Stage = Stage(plain=48, bcq=16, ncq=8, num_steps=2000, learning_rate=3e-3, seed=1)
    student: Stage = Stage(plain=48, bcq=16, ncq=8, num_steps=300, learning_rate=1e-3, seed=3, habit=0.94)
    teacher: Stage = Stage(plain=64, bcq=0, ncq=0, num_steps=600, learning_rate=1e-3, seed=2)


def draw(stage: Stage, mixture: Mixture, rng: np.random.Generator, teacher: bool) -> tuple[list[Example], ...]:
    """Draws the examples of one step, by length bucket."""
    template = TEMPLATES["compact"]
    mixture = dataclasses.replace(mixture, habit=stage.habit)
    return (
        [examples.plain(rng, mixture, template, teacher) for _ in range(stage.plain)],
        [examples.bcq(rng, mixture, template) for _ in range(stage.bcq)],
        [examples.ncq(rng, mixture, template) for _ in range(stage.ncq)],
    )


def batches(
    stage: Stage, mixture: Mixture, config: Config, processor: Processor, teacher: bool
) -> Iterator[tuple[supervised.Batch, ...]]:
    """Yields packed batches without end; they depend on the stage's seed only."""
    rng = np.random.default_rng(stage.seed)
    while True:
        drawn = draw(stage, mixture, rng, teacher)
        yield tuple(
            supervised.pack(config, processor, part, bucket, PATCH_SLOTS, MAX_NEW_TOKENS)
            for part, bucket in zip(drawn, BUCKETS, strict=True)
            if part
        )


def fingerprint(recipe: Recipe | None = None) -> str:
    """A hash over architecture, tokenizer, recipe and the first examples that the recipe draws.

    The examples are in it because code defines what the recipe means: if you change how a candidate looks, the shipped
    weights no longer belong to the source.
    """
    recipe = recipe or Recipe()
    processor = tiny.processor()
    content: dict[str, Any] = {
        "architecture": configs.to_dict(tiny.config(processor), "float32"),
        "tokenizer": processor.tokenizer.get_vocab(with_added_tokens=True),  # not the file: its format may change
        "recipe": dataclasses.asdict(recipe),
        "examples": [
            [example.text, example.response, hashlib.sha256(example.image.tobytes()).hexdigest()]
            for teacher in (False, True)
            for part in draw(recipe.student, recipe.mixture, np.random.default_rng(0), teacher)
            for example in part
        ],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
