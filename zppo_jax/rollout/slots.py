"""The functions that fill slots and advance them, which programs.py compiles.

A slot holds one rollout: its states, its keys, its next token (state.py). All slots write their keys at the same place,
a cursor that moves round a ring of S key slots, so a step writes one slice, in place; a mask says which keys belong to
a row. A prompt is copied into the ring right before the cursor, when its row becomes free. A ring of T + R slots
therefore holds any prompt of a bucket T and R new tokens: the cursor first overwrites the prompt of the oldest row,
when that row has its R tokens.

A prompt's last token is not prefilled: it is the first input of decoding. So a step always means "feed one token,
sample the next", and no logits of the prefill are needed.

Random numbers: token number t of a row is drawn with fold_in(key_b, t) only, so a rollout depends on its seed and
position, never on its slot or its neighbours. Keys are passed as raw numbers (key_B2), which can be placed on a mesh
like any other array, and compiled for from their shape.

Shape suffixes: P prompts, B rows (slots), I rows of patches, M merged slots, T prompt tokens, S key slots, K tokens of
a chunk, V vocabulary, D model.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from zppo_jax import parallel
from zppo_jax.models.qwen3_5 import text, vlm
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.models.qwen3_5.decode import logits, map_states, step_layers, unstack_cache
from zppo_jax.models.qwen3_5.decode_weights import Weights
from zppo_jax.ops.vocabulary import scaled_logits
from zppo_jax.rollout import filters
from zppo_jax.rollout.state import Array, Chunk, NewRows, Slots

PREFILL_INPUTS = ("tokens_BT", "mask_BT", "positions_3BT", "feature_BT", "features_IMD")


@functools.partial(jax.jit, static_argnums=1)
def encode(params: dict[str, Any], config: Config, patches_ISC: jax.Array, grid_IS5: jax.Array) -> jax.Array:
    """Computes vision features [I, M, D] of rows of patches, in the dtype of the language model; whole on every device,
    because a later prompt may need them on any device."""
    features_IMD = vlm.vision_features(params, config, {"patches_ISC": patches_ISC, "grid_IS5": grid_IS5})
    return parallel.constrain(features_IMD, None, None, None)


@functools.partial(jax.jit, static_argnums=1)
def prefill(params: dict[str, Any], config: Config, inputs: dict[str, Any]) -> text.Cache:
    """Computes the caches of a batch of prompts without their last tokens."""
    return parallel.constrain_tree(vlm.prefill(params, config, inputs)[1], text.CACHE_AXES)


@functools.partial(jax.jit, static_argnums=1, donate_argnums=0)
def fill(slots: Slots, config: Config, cache: text.Cache, rows: NewRows) -> Slots:
    """Copies prompts of `cache` into free slots, in place."""
    chosen_B = rows.prompt_B >= 0
    prompt_B = jnp.maximum(rows.prompt_B, 0)
    num_tokens, num_keys = cache["mask"].shape[1], slots.mask_BS.shape[1]
    # Key slot s takes the prompt's token index_S[s], if it exists: the prompt ends right before the cursor.
    index_S = (jnp.arange(num_keys) - slots.cursor + num_tokens) % num_keys
    inside_S, index_S = index_S < num_tokens, jnp.minimum(index_S, num_tokens - 1)

    def choose(old: jax.Array, new: Array) -> jax.Array:
        return jnp.where(chosen_B.reshape(-1, *(1,) * (old.ndim - 1)), new.astype(old.dtype), old)

    last = cache["mask"]

    def gathered(new: jax.Array) -> jax.Array:
        """Gathers all prompts on every device, because any row may continue any of them. On a mesh one array after the
        other: all at once would take as much memory as the slots."""
        if not parallel.in_use():
            return new
        new, _ = jax.lax.optimization_barrier((new, last))
        return parallel.constrain(new, *(None,) * new.ndim)

    def laid(old: jax.Array, new: jax.Array, axis: int, here: jax.Array) -> jax.Array:
        nonlocal last
        new = jnp.take(jnp.take(gathered(new), index_S, axis=axis), prompt_B, axis=0)
        last = jnp.where(chosen_B[:, None, None, None] & here, new.astype(old.dtype), old)
        return last

    def keys(old_BKHS: jax.Array, new_PKHT: jax.Array) -> jax.Array:
        return laid(old_BKHS, new_PKHT, 3, inside_S)

    def values(old_BKSH: jax.Array, new_PKTH: jax.Array) -> jax.Array:
        return laid(old_BKSH, new_PKTH, 2, inside_S[:, None])

    def state(old: jax.Array, new: jax.Array) -> jax.Array:
        return choose(old, jnp.take(gathered(new), prompt_B, axis=0))

    new_states = unstack_cache(cache, config.text)
    states = map_states(state, keys, values, config.text, slots.states, new_states)
    mask_BS = jnp.take(jnp.take(cache["mask"], index_S, axis=1), prompt_B, axis=0) & inside_S
    taken = {name: getattr(rows, name) for name in ("token_B", "position_B", "limit_B", "key_B2")}
    changed = {name: choose(getattr(slots, name), new) for name, new in taken.items()}
    if slots.seen_BV is not None:
        assert slots.said_BV is not None and rows.seen_PV is not None
        changed["seen_BV"] = choose(slots.seen_BV, jnp.take(rows.seen_PV, prompt_B, axis=0))
        changed["said_BV"] = choose(slots.said_BV, jnp.zeros_like(slots.said_BV))
    filled = dataclasses.replace(
        slots,
        states=states,
        mask_BS=choose(slots.mask_BS, mask_BS),
        live_B=slots.live_B | chosen_B,
        count_B=choose(slots.count_B, jnp.zeros_like(slots.count_B)),
        sampling=jax.tree.map(choose, slots.sampling, rows.sampling),
        **changed,
    )
    return filled.constrained(config)


@functools.partial(jax.jit, static_argnums=(1, 2, 3), donate_argnums=4)
def decode(
    weights: Weights,
    config: Config,
    chunk: int,
    truncates: bool,
    slots: Slots,
    num_steps: jax.Array,
    end_B: jax.Array,
    stop_ids: jax.Array,
    banned_V: jax.Array,
) -> tuple[Slots, Chunk]:
    """Samples up to `num_steps` <= `chunk` more tokens in every live row, in place; state.py says when a row ends.

    `weights` are from decode_weights.prepare; `end_B` are rows that end before the first step.
    """
    num_rows, num_keys = slots.mask_BS.shape
    steps_K = jnp.arange(chunk)
    uniform_KB = jax.vmap(lambda step: _uniform(slots.key_B2, slots.count_B + step))(steps_K)

    def more(carry):
        slots, out = carry
        going = out["num_steps"] < num_steps
        return going if parallel.in_use() else going & jnp.any(slots.live_B)

    def advance(carry):
        slots, out = carry
        step, live_B, place = out["num_steps"], slots.live_B, slots.cursor
        mask_BS = jax.lax.dynamic_update_slice_in_dim(slots.mask_BS, live_B[:, None], place, axis=1)
        x_BD = text.embed(weights, slots.token_B[:, None])[:, 0]
        hidden_BD, states = step_layers(weights, config.text, x_BD, slots.position_B, mask_BS, slots.states, place)
        scores_BV = logits(weights, hidden_BD)
        token_B, logprob_B, kept_B = _sample(scores_BV, uniform_KB[step], banned_V, truncates, slots)
        count_B = slots.count_B + live_B
        stop_B = live_B & jnp.any(token_B[:, None] == stop_ids, axis=1)
        slots = dataclasses.replace(
            slots,
            states=states,
            mask_BS=mask_BS,
            token_B=token_B,
            position_B=slots.position_B + live_B,
            count_B=count_B,
            live_B=live_B & ~stop_B & (count_B < slots.limit_B),
            cursor=(place + 1) % num_keys,
        )
        if slots.seen_BV is not None and slots.said_BV is not None:
            drawn_BV = (jnp.arange(scores_BV.shape[1]) == token_B[:, None]) & live_B[:, None]
            slots = dataclasses.replace(slots, seen_BV=slots.seen_BV | drawn_BV, said_BV=slots.said_BV | drawn_BV)
        columns = {"tokens_BK": token_B, "logprobs_BK": logprob_B, "kept_logprobs_BK": kept_B}
        columns = {name: _write(out[name], jnp.where(live_B, new, 0), step) for name, new in columns.items()}
        return slots.constrained(config), columns | {"num_steps": step + 1, "stopped_B": out["stopped_B"] | stop_B}

    out = {
        "num_steps": jnp.int32(0),
        "stopped_B": jnp.zeros(num_rows, bool),
        "tokens_BK": jnp.zeros((num_rows, chunk), jnp.int32),
        "logprobs_BK": jnp.zeros((num_rows, chunk), jnp.float32),
        "kept_logprobs_BK": jnp.zeros((num_rows, chunk), jnp.float32),
    }
    live = dataclasses.replace(slots, live_B=slots.live_B & ~end_B)
    slots, out = jax.lax.while_loop(more, advance, (live, out))
    new = Chunk(**out, live_B=slots.live_B, count_B=slots.count_B)
    # An array that is constrained within a loop may leave it with any sharding.
    return slots.constrained(config), jax.tree.map(lambda x: parallel.constrain(x, *(None,) * x.ndim), new)


def _uniform(key_B2: jax.Array, count_B: jax.Array) -> jax.Array:
    key_B = jax.random.wrap_key_data(key_B2)
    return jax.vmap(lambda key, count: jax.random.uniform(jax.random.fold_in(key, count)))(key_B, count_B)


def _write(columns_BK: jax.Array, new_B: jax.Array, step: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(columns_BK, new_B[:, None].astype(columns_BK.dtype), step, axis=1)


def _sample(scores_BV, uniform_B, banned_V, truncates: bool, slots: Slots) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws (token, its log-probability untruncated, and truncated), each [B]."""
    sampling = slots.sampling
    greedy_B, temperature_B1 = sampling["temperature"] == 0.0, sampling["temperature"][:, None]
    plain_BV = drawable_BV = scaled_logits(scores_BV, temperature_B1, banned_V)
    if slots.seen_BV is not None and slots.said_BV is not None:
        scores_BV = filters.penalise(scores_BV.astype(jnp.float32), sampling, slots.seen_BV, slots.said_BV)
        drawable_BV = scaled_logits(scores_BV, temperature_B1, banned_V)
    if truncates:
        keep_BV = filters.truncate(drawable_BV, *(sampling[name] for name in ("top_k", "top_p", "min_p")))
        drawable_BV = jnp.where(keep_BV, drawable_BV, -jnp.inf)
    token_B, kept_B = filters.draw(drawable_BV, uniform_B, greedy_B)
    logprob_B = kept_B
    if drawable_BV is not plain_BV:
        chosen_B = jnp.take_along_axis(plain_BV, token_B[:, None], axis=1)[:, 0]
        logprob_B = chosen_B - jax.nn.logsumexp(plain_BV, axis=-1)
    return token_B, logprob_B, jnp.where(greedy_B, 0.0, kept_B)
