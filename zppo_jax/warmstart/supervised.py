"""Supervised training of the tiny models: the same forward pass as the policy update, with a plain log-likelihood.

Shape suffixes: M examples, R response tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zppo_jax.models.qwen3_5 import inputs
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.processor import Processor
from zppo_jax.update.step import response_logprobs
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
    """Examples of one length bucket as the arrays of a micro-batch with one response a prompt."""
    features = [processor.features(example.text, [example.image]) for example in examples]
    batch = inputs.from_features(config, features, len(examples), bucket, patch_slots)
    batch["response_MGR"] = np.zeros((len(examples), 1, max_new_tokens), np.int32)
    batch["mask_MGR"] = np.zeros((len(examples), 1, max_new_tokens), bool)
    for m, example in enumerate(examples):
        ids = [*encode_response(processor, example.response), processor.stop_ids[0]]
        batch["response_MGR"][m, 0, : len(ids)] = ids
        batch["mask_MGR"][m, 0, : len(ids)] = True
    return batch


def encode_response(processor: Processor, response: str) -> list[int]:
    """Ids of a response; here, unlike in user text, `</think>` is the control token."""
    return processor.tokenizer.encode(response, add_special_tokens=False).ids


def _loss(params, config: Config, batches: tuple[Batch, ...], banned_V: jax.Array) -> jax.Array:
    total, count = jnp.float32(0.0), 0
    for batch in batches:
        logprobs_MR = response_logprobs(params, config, batch, 1.0, banned_V)
        mask_MR = batch["mask_MGR"].reshape(logprobs_MR.shape)
        total += jnp.sum(jnp.where(mask_MR, logprobs_MR, 0.0))
        count += jnp.sum(mask_MR)
    return -total / count


@functools.partial(jax.jit, static_argnums=(1, 2), donate_argnums=0)
def step(
    state, config: Config, transform: optax.GradientTransformation, batches: tuple[Batch, ...], banned_V: jax.Array
):
    """One optimiser step on one batch of each length bucket; returns (state, loss in nats a token)."""
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
    """Train for `num_steps` with warm-up and cosine decay; `on_step` is told (step, loss)."""
    rate = optax.warmup_cosine_decay_schedule(0.0, peak_rate, min(50, num_steps // 4), num_steps, 0.02 * peak_rate)
    transform = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.01))
    state = {"params": params, "optimizer": transform.init(params)}
    for index in range(num_steps):
        state, loss = step(state, config, transform, next(batches), banned_V)
        on_step(index + 1, float(loss))
    return state["params"]
