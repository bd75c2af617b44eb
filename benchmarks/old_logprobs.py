"""The denominator of the ratio in bfloat16: the sampler's log-probabilities or the trainer's (`update.old_logprobs`).

    python -m benchmarks.old_logprobs

A random model in bfloat16 samples groups with random rewards. Prints the distances between the log-probabilities of
sampler, trainer and the same weights in float32, and the tokens that a step of four updates clips with either choice.
docs/decisions.md has the numbers.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests import tiny_model
from zppo_jax.compilation import Compiler
from zppo_jax.keys import RandomStream
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import hf
from zppo_jax.rollout.engine import Engine
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.requests import Request
from zppo_jax.rollout.sample import sample
from zppo_jax.rollout.shapes import Shapes
from zppo_jax.types import Group
from zppo_jax.update import batch, optimizer, rows
from zppo_jax.update.learner import Learner, Schedule
from zppo_jax.update.objective import Clipped
from zppo_jax.update.programs import Recipe

NUM_QUESTIONS, GROUP_SIZE, NEW_TOKENS = 64, 8, 64
SHAPES = Shapes((16,), 16, NEW_TOKENS)
CLIP_LOW, CLIP_HIGH = 0.2, 0.28
RATES = (1e-6, 1e-4)


def cast(model: qwen3_5.Model, dtype: str) -> qwen3_5.Model:
    """The model as loaded in that dtype (parameters that are float32 in every model stay so)."""
    like = hf.abstract_params(model.config, dtype)
    return qwen3_5.Model(model.config, jax.tree.map(lambda x, y: x.astype(y.dtype), model.params, like))


def learner_of(model: qwen3_5.Model, old_logprobs: str, rate: float, compiler: Compiler) -> Learner:
    adamw = optimizer.adamw(
        optimizer.learning_rate("constant", rate, 0, 1), 0.9, 0.999, 1e-8, 0.1, 1.0, "float32", "master"
    )
    sizes = rows.shapes(4, 0, 1, SHAPES.buckets[-1], NEW_TOKENS, SHAPES.patch_slots)
    recipe = Recipe(model.config, Clipped(CLIP_LOW, CLIP_HIGH, 10.0), adamw, temperature=1.0)
    return Learner(recipe, sizes, Schedule(4, 1, old_logprobs), tiny_model.banned_V(), compiler)


def sampled(model: qwen3_5.Model, compiler: Compiler) -> list[Group]:
    """Groups of the model's responses, half of them counted as right."""
    engine = Engine(model.config, SHAPES, 64, 8, tiny_model.banned_V(), compiler, "sampler's ", 16, "bfloat16")
    items = [tiny_model.item(f"q{number}") for number in range(NUM_QUESTIONS)]
    requests = [
        Request(one.prompt.uid, one.features, GROUP_SIZE, sampling=Sampling(), draw=RandomStream(0, 1, "student"))
        for one in items
    ]
    right = np.random.default_rng(0).random((NUM_QUESTIONS, GROUP_SIZE)) < 0.5
    answers = sample(engine, model.params, requests)
    return [tiny_model.group(*row) for row in zip(items, answers, right, strict=True)]


def tokens_of(groups: list[Group]) -> np.ndarray:
    """The log-probabilities of all tokens, one after the other."""
    return np.concatenate([one.logprobs_T for group in groups for one in group.rollouts]).astype(np.float64)


def recomputed(learner: Learner, params: dict[str, Any], groups: list[Group]) -> list[Group]:
    weights_PG = tiny_model.CREDIT(tiny_model.outcomes(groups), [])
    chosen = batch.with_gradient(range(len(groups)), weights_PG)
    found, _ = learner.with_old_logprobs(params, dict(enumerate(groups)), weights_PG, chosen)
    return [found[index] for index in range(len(groups))]


def main() -> None:
    compiler, model = Compiler(), cast(tiny_model.model(), "bfloat16")
    params = model.params
    groups = [group for group in sampled(model, compiler) if len(set(group.rewards_G.tolist())) > 1]
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    trainer = tokens_of(recomputed(learner_of(model, "trainer", 1e-6, compiler), params, groups))
    exact = cast(model, "float32")  # the same weights, computed without rounding
    precise = tokens_of(recomputed(learner_of(exact, "trainer", 1e-6, Compiler()), exact.params, groups))
    sampler = tokens_of(groups)
    print(f"{size / 1e6:.2f} million parameters in bfloat16, {len(sampler)} tokens, {len(groups)} groups")
    pairs = {"sampler - trainer": sampler - trainer, "sampler - float32": sampler - precise}
    for name, difference in (pairs | {"trainer - float32": trainer - precise}).items():
        ratio = np.exp(-difference)
        outside = np.mean((ratio < 1 - CLIP_LOW) | (ratio > 1 + CLIP_HIGH))
        print(f"{name}: mean {np.mean(np.abs(difference)):.2e}, largest {np.max(np.abs(difference)):.2e} nats;", end="")
        print(f" outside [{1 - CLIP_LOW:g}, {1 + CLIP_HIGH:g}] {100 * outside:.3f} % of the tokens")
    for rate in RATES:
        compiler = Compiler()  # a new one: it keeps programs by name, and the rate is part of the update
        for choice in ("sampler", "trainer"):
            learner = learner_of(model, choice, rate, compiler)
            state = learner.init(jax.tree.map(jnp.copy, params))
            metrics = tiny_model.update(learner, state, groups, seed=0, step=1).metrics
            shown = {name: metrics[name] for name in ("clip_fraction", "log_ratio_abs", "mismatch_abs", "grad_norm")}
            print(f"rate {rate:g}, {choice}: " + ", ".join(f"{name} {value:.2e}" for name, value in shown.items()))


if __name__ == "__main__":
    sys.exit(main())
