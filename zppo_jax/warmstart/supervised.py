"""Supervised training of the tiny models: the same forward pass as the policy update, with a plain log-likelihood.

Shape suffixes: B rows, T slots.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.processor import Processor
from zppo_jax.types import Group, Prompt, Question, Rollout
from zppo_jax.update import rows
from zppo_jax.update.programs import output_of
from zppo_jax.warmstart.examples import Example

Batch = dict[str, Any]


def pack(
    config: Config,
    processor: Processor,
    examples: Sequence[Example],
    bucket: int,
    patch_slots: int,
    max_new_tokens: int,
) -> Batch:
    """Packs examples of one length bucket into the arrays of a micro-batch, each in a separate row."""
    groups = [_group(processor, example) for example in examples]
    shapes = rows.shapes(len(groups), 0, 1, bucket, max_new_tokens, patch_slots)
    placed = [[rows.Part(index, (0,))] for index in range(len(groups))]
    return rows.microbatch(config, groups, np.ones((len(groups), 1), np.float32), placed, shapes)


def _group(processor: Processor, example: Example) -> Group:
    """The example as a prompt with one rollout."""
    ids = np.asarray([*encode_response(processor, example.response), processor.stop_ids[0]], np.int32)
    rollout = Rollout(ids, np.zeros(len(ids), np.float32), "stop", example.response, True, None, "")
    question = Question("example", example.text, (example.image,), "", "math")
    features = processor.features(example.text, [example.image])
    return Group(Prompt("example", "plain", question, example.text), features, (rollout,))


def encode_response(processor: Processor, response: str) -> list[int]:
    """Encodes a response; here, unlike in user text, `</think>` is the control token."""
    return processor.tokenizer.encode(response, add_special_tokens=False).ids


def _loss(params, config: Config, batches: tuple[Batch, ...], banned_V: jax.Array) -> jax.Array:
    total, count = jnp.float32(0.0), 0
    for batch in batches:
        logprobs_BT = output_of(params, config, batch, 1.0, banned_V).logprobs(batch["target_BT"])
        total += jnp.sum(jnp.where(batch["counted_BT"], logprobs_BT, 0.0))
        count += jnp.sum(batch["counted_BT"])
    return -total / count


@functools.partial(jax.jit, static_argnums=(1, 2), donate_argnums=0)
def step(
    state, config: Config, transform: optax.GradientTransformation, batches: tuple[Batch, ...], banned_V: jax.Array
):
    """Makes one optimiser step on one batch of each length bucket; returns (state, loss in nats per token)."""
    loss, gradient = jax.value_and_grad(_loss)(state["params"], config, batches, banned_V)
    changes, optimizer = transform.update(gradient, state["optimizer"], state["params"])
    return {"params": optax.apply_updates(state["params"], changes), "optimizer": optimizer}, loss


def train(
    params: dict[str, Any],
    config: Config,
    batches: Iterator[tuple[Batch, ...]],
    num_steps: int,
    peak_rate: float,
    banned_V: np.ndarray,
    on_step: Callable[[int, float], None],
) -> dict[str, Any]:
    """Train for `num_steps` with warm-up and cosine decay; `on_step` is called with (step, loss)."""
    rate = optax.warmup_cosine_decay_schedule(0.0, peak_rate, min(50, num_steps // 4), num_steps, 0.02 * peak_rate)
    transform = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.01))
    state = {"params": params, "optimizer": transform.init(params)}
    for index in range(num_steps):
        state, loss = step(state, config, transform, next(batches), banned_V)
        on_step(index + 1, float(loss))
    return state["params"]
