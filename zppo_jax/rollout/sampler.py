"""The jitted sampler: prefill prompts, fork their caches to rollouts, decode until every row has stopped.

A prompt's last token is not prefilled but is the first input of decoding; so sampling step t always means "feed one
token, sample the next", and no logits of the prefill are needed.

Random numbers: row b at step t uses fold_in(key_b, t) alone, so a rollout depends on its own seed and position, never
on its slot or its neighbours.

Shape suffixes: P prompts, B rows, T prompt slots, S all key slots, R new tokens, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from zppo_jax import parallel
from zppo_jax.models.qwen3_5 import text, vlm
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.rollout import filters

PREFILL_INPUTS = ("tokens_BT", "mask_BT", "positions_3BT", "feature_BT", "patches_ISC", "grid_IS5")


@functools.partial(jax.jit, static_argnums=1)
def prefill(params: dict[str, Any], config: Config, inputs: dict[str, Any]) -> text.Cache:
    """Caches of a batch of prompts without their last tokens."""
    return parallel.constrain_tree(vlm.prefill(params, config, inputs)[1], text.CACHE_AXES)


@jax.jit
def fork(caches: tuple[text.Cache, ...], row_B: jax.Array) -> text.Cache:
    """One row for each rollout from prefilled prompts; `row_B` counts through the given caches in order."""
    joined = {name: jnp.concatenate([cache[name] for cache in caches], axis) for name, axis in text.ROW_AXIS.items()}
    return parallel.constrain_tree(text.fork_cache(joined, row_B), text.CACHE_AXES)


def _uniform(keys_B: jax.Array, step: jax.Array) -> jax.Array:
    return jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, step)))(keys_B)


@functools.partial(jax.jit, static_argnums=(1, 2))
def decode(
    params: dict[str, Any],
    config: Config,
    num_new: int,
    cache: text.Cache,
    token_B: jax.Array,
    position_B: jax.Array,
    keys_B: jax.Array,
    live_B: jax.Array,
    stop_ids: jax.Array,
    banned_V: jax.Array,
    pad_id: jax.Array,
    sampling: dict[str, Any],
) -> dict[str, jax.Array]:
    """Sample up to `num_new` tokens a row.

    `token_B` and `position_B` are each prompt's last token and its rope position; `live_B` is false for rows that only
    fill the batch. Returns tokens_BR (pad after the stop token), logprobs_BR (0 there), length_B, stopped_B.
    """
    weights = text.unstack_layers(params["text"], config.text)
    states = text.unstack_cache(cache, config.text, num_new)
    num_rows, num_slots = cache["mask"].shape
    new_R = jnp.arange(num_new)

    def more(carry):
        return (carry["step"] < num_new) & jnp.any(carry["live_B"])

    def advance(carry):
        step, live_B = carry["step"], carry["live_B"]
        seen_BR = jnp.broadcast_to(new_R <= step, (num_rows, num_new))
        mask_BS = jnp.concatenate([cache["mask"], seen_BR], axis=1)
        x_B1D = text.embed(params["text"], carry["token_B"][:, None])
        hidden_BD, states = text.step_layers(
            weights, params["text"], config.text, x_B1D, position_B + step, mask_BS, carry["states"], num_slots + step
        )
        logits_BV = text.logits(params["text"], hidden_BD)
        logprobs_BV = filters.log_softmax(logits_BV, sampling["temperature"], banned_V)
        drawn_B = filters.sample(logprobs_BV, _uniform(keys_B, step), sampling)
        token_B = jnp.where(live_B, drawn_B, pad_id)
        logprob_B = jnp.take_along_axis(logprobs_BV, drawn_B[:, None], axis=1)[:, 0]
        stop_B = live_B & jnp.any(token_B[:, None] == stop_ids, axis=1)
        return {
            "step": step + 1,
            "token_B": token_B,
            "states": states,
            "live_B": live_B & ~stop_B,
            "stopped_B": carry["stopped_B"] | stop_B,
            "length_B": carry["length_B"] + live_B,
            "tokens_BR": jax.lax.dynamic_update_slice_in_dim(carry["tokens_BR"], token_B[:, None], step, 1),
            "logprobs_BR": jax.lax.dynamic_update_slice_in_dim(
                carry["logprobs_BR"], jnp.where(live_B, logprob_B, 0.0)[:, None], step, 1
            ),
        }

    start = {
        "step": jnp.int32(0),
        "token_B": token_B,
        "states": states,
        "live_B": live_B,
        "stopped_B": jnp.zeros(num_rows, bool),
        "length_B": jnp.zeros(num_rows, jnp.int32),
        "tokens_BR": jnp.full((num_rows, num_new), pad_id, jnp.int32),
        "logprobs_BR": jnp.zeros((num_rows, num_new), jnp.float32),
    }
    end = jax.lax.while_loop(more, advance, start)
    return {name: end[name] for name in ("tokens_BR", "logprobs_BR", "length_B", "stopped_B")}
