"""A random tiny Qwen3.5 with its own tokenizer, and engines and learners that share their compiled programs.

The architecture is the warm start's, except for its depth. Every parameter is random and of a size at which logits
differ by several units, so that no test passes because all distributions are uniform. Sixty more ids end a response, so
that lengths differ.

Compiling takes most of the time here: all tests share one engine and one learner where they can.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.models.tiny import FAST_COMPILE, random_params
from zppo_jax.compilation import Compiler, Kind, Program
from zppo_jax.data.processing import EncodedPrompt
from zppo_jax.keys import RandomStream
from zppo_jax.models import qwen3_5
from zppo_jax.processor import Processor
from zppo_jax.rollout.banned import banned_mask
from zppo_jax.rollout.engine import Engine
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.requests import Request, Sample
from zppo_jax.rollout.sample import sample as sample_requests
from zppo_jax.rollout.shapes import Shapes
from zppo_jax.types import Cohort, Features, Group, Outcome, Prompt, Question, Rollout
from zppo_jax.update import rows
from zppo_jax.update.credit import Credit, GroupRelative
from zppo_jax.update.learner import Learner, Schedule
from zppo_jax.update.objective import Clipped
from zppo_jax.update.programs import Recipe
from zppo_jax.warmstart import tiny
from zppo_jax.zppo import prompts

TEMPLATE = prompts.get_template("compact")
SHAPES = Shapes(buckets=(12, 16), patch_slots=16, max_new_tokens=8)
"""Texts of a few words fit the first bucket, those with an image need the second."""
GROUP_SIZE = 3


@functools.cache
def processor() -> Processor:
    return tiny.processor()


@functools.cache
def model(seed: int = 0) -> qwen3_5.Model:
    config = tiny.config(processor())
    # With an untied head: with a tied one, a random model repeats its last token. One layer of each kind.
    text = dataclasses.replace(config.text, num_hidden_layers=2, full_attention_interval=2, tie_word_embeddings=False)
    config = dataclasses.replace(config, text=text, stop_token_ids=(*config.stop_token_ids, *range(100, 160)))
    return qwen3_5.Model(config, random_params(config, seed))


@functools.cache
def banned_V() -> np.ndarray:
    return banned_mask(model().config, processor())


class _Lowered:
    def __init__(self, lowered: Any):
        self._lowered = lowered

    def compile(self, options: dict[str, Any] | None) -> Any:
        return self._lowered.compile((options or {}) | FAST_COMPILE)


class FastCompiler(Compiler):
    """Compiles programs in half the time, which then run slower: here nothing runs for long."""

    def program(
        self, name: str, lower: Callable[[], Any], kind: Kind = "sequence", mesh: jax.sharding.Mesh | None = None
    ) -> Program:
        return super().program(name, lambda: _Lowered(lower()), kind, mesh)


@functools.cache
def compiler() -> Compiler:
    """The one compiler of the session: a program of the same name and shapes is compiled once."""
    return FastCompiler(num_threads=1)


@functools.cache
def engine(num_slots: int = 8, prompts_per_call: int = 2, shapes: Shapes = SHAPES, chunk: int = 3) -> Engine:
    name = f"{num_slots} slots, {prompts_per_call} prompts in {shapes}, {chunk} tokens: "
    return Engine(model().config, shapes, num_slots, prompts_per_call, banned_V(), compiler(), name, chunk)


def cache_size(jitted: Any) -> int:
    """The number of times that a jitted function was compiled."""
    return jitted._cache_size()


# ---------------------------------------------------------------- prompts


def question(name: str, num_images: int = 0, text: str = "") -> Question:
    """A question with random images of 32 x 64 pixels (two digits' room)."""
    rng = np.random.default_rng(list(name.encode()))
    images = tuple(rng.integers(0, 256, (32, 64, 3), np.uint8) for _ in range(num_images))
    return Question(name, text or f"{name}?", images, "7", "math")


def item(name: str, num_images: int = 0, text: str = "") -> EncodedPrompt:
    asked = question(name, num_images, text)
    prompt = Prompt(f"1/{name}/plain", "plain", asked, prompts.plain_text(asked.text, TEMPLATE))
    return EncodedPrompt(prompt, processor().features(prompt.text, asked.images))


@functools.cache
def items() -> tuple[EncodedPrompt, ...]:
    """Seven prompts of different lengths, with and without an image, in both buckets."""
    return tuple(item(name, num_images) for name, num_images in zip("abcdefg", (0, 1, 0, 1, 1, 0, 1), strict=True))


def features(name: str, num_images: int = 0, text: str = "") -> Features:
    return item(name, num_images, text).features


def sample(
    engine: Engine,
    requests: Sequence[Request],
    *,
    seed: int = 0,
    step: int = 1,
    purpose: str = "student",
    **settings: Any,
) -> list[list[Sample]]:
    """All requests with the same settings and random stream."""
    chosen = [
        dataclasses.replace(one, sampling=Sampling(**settings), draw=RandomStream(seed, step, purpose))
        for one in requests
    ]
    return sample_requests(engine, model().params, chosen)


# ---------------------------------------------------------------- groups and updates


def group(of: EncodedPrompt, samples: Sequence[Sample], correct: Sequence[bool]) -> Group:
    rollouts = tuple(
        Rollout(one.token_ids_T, one.logprobs_T, one.finish_reason, "", right, None, "ok")
        for one, right in zip(samples, correct, strict=True)
    )
    return Group(of.prompt, of.features, rollouts)


@functools.cache
def groups() -> tuple[Group, ...]:
    """The random model's answers to `items()`, rewarded at random; one group has no spread."""
    requests = [Request(one.prompt.uid, one.features, GROUP_SIZE) for one in items()]
    rewards = np.asarray([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 1, 0]], bool)
    answers = sample(engine(), requests)
    return tuple(group(*row) for row in zip(items(), answers, rewards, strict=True))


def outcomes(groups: Sequence[Group]) -> tuple[Outcome, ...]:
    return tuple(group.outcome() for group in groups)


def cohort(groups: Sequence[Group]) -> Cohort:
    """The groups as the cohort of the only host."""
    return Cohort(tuple(groups), outcomes(groups))


def keep_gradient(rate: float) -> optax.GradientTransformation:
    """Plain gradient descent whose state is the last gradient, so that a test can check it."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(lambda g: -rate * g, updates), updates

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)


OBJECTIVE = Clipped(clip_low=0.2, clip_high=0.28, dual_clip=10.0)
SCHEDULE = Schedule(num_minibatches=2, inner_epochs=1)
CREDIT = GroupRelative(normalisation="nonzero", scope="batch", eps=1e-6)
ROWS = rows.shapes(2, 88, 2, SHAPES.buckets[-1], SHAPES.max_new_tokens, SHAPES.patch_slots)
"""Row sizes: two groups of 36 or 40 slots fit a row."""


@functools.cache
def learner() -> Learner:
    recipe = Recipe(model().config, OBJECTIVE, keep_gradient(0.003), temperature=1.0)
    return Learner(recipe, ROWS, SCHEDULE, banned_V(), compiler())


class Result(NamedTuple):
    """A step of updates: the new state, and the fields of `Updated`."""

    state: dict[str, Any]
    weights_PG: np.ndarray
    metrics: dict[str, float]
    skipped: dict[int, list[int]]


def update(
    trainer: Learner, state: dict[str, Any], groups: Sequence[Group], *, seed: int, step: int, credit: Credit = CREDIT
) -> Result:
    """Makes all updates of a step on these groups."""
    state, updated = trainer.update(state, cohort(groups), credit, seed=seed, step=step)
    return Result(state, *updated)


def fresh_state() -> dict[str, Any]:
    """A state with separate buffers, because the update donates them."""
    return learner().init(jax.tree.map(jnp.copy, model().params))
