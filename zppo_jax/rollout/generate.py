"""`generate`: sample several responses for each row of a Hugging Face batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from zppo_jax.models.qwen3_5 import Model, decode_weights, inputs
from zppo_jax.rollout import filters, slots
from zppo_jax.rollout.banned import banned_mask
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.state import NewRows, empty


@dataclasses.dataclass(frozen=True, eq=False)
class Generation:
    """Sampled responses: B rows, N samples per row, T = max_new_tokens.

    `tokens` int32 [B, N, T] with pad ids after the stop token, `logprobs` float32 [B, N, T] of the untruncated
    distribution at the sampling temperature (at temperature 1 when greedy), 0 after the stop token; `lengths` [B, N]
    count the stop token; `finish_reasons` [B, N] are "stop" or "length".
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    lengths: np.ndarray
    finish_reasons: np.ndarray


def split_last(batch: inputs.Inputs, deltas_B: np.ndarray) -> tuple[inputs.Inputs, np.ndarray, np.ndarray]:
    """Remove each row's last valid token: (inputs to prefill, last token [B], its rope position [B])."""
    mask_BT = np.asarray(batch["mask_BT"])
    if not mask_BT.any(axis=1).all():
        raise ValueError(
            f"rows {np.flatnonzero(~mask_BT.any(axis=1)).tolist()} hold no token at all: every prompt needs one"
        )
    last_B = mask_BT.shape[1] - 1 - np.argmax(mask_BT[:, ::-1], axis=1)
    rows = np.arange(len(last_B))
    shortened = mask_BT.copy()
    shortened[rows, last_B] = False
    position_B = (mask_BT.sum(axis=1) - 1 + deltas_B).astype(np.int32)
    return batch | {"mask_BT": shortened}, np.asarray(batch["tokens_BT"])[rows, last_B], position_B


def generate(
    model: Model,
    hf_inputs: dict[str, np.ndarray],
    num_samples: int = 8,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop_ids: Sequence[int] | None = None,
) -> Generation:
    """Sample `num_samples` responses for every row of `hf_inputs` (the output of the HF processor).

    Each prompt is prefilled once and its cache forked. temperature 0 is greedy. `stop_ids` None means the model's ids,
    [] never stops. The same seed gives the same responses; another seed or other sampling settings compile nothing.
    """
    config = model.config
    batch, deltas_B = inputs.from_hf(config, **hf_inputs)
    batch, token_B, position_B = split_last(batch, deltas_B)
    num_rows = len(token_B)
    prompt_B = np.repeat(np.arange(num_rows, dtype=np.int32), num_samples)
    batch["features_IMD"] = slots.encode(model.params, config, batch.pop("patches_ISC"), batch.pop("grid_IS5"))
    cache = slots.prefill(model.params, config, batch)
    dtype = str(model.params["text"]["embed"].dtype)
    free = empty(config, len(prompt_B), batch["tokens_BT"].shape[1] + max_new_tokens, (dtype, "float32"))
    keys = jax.random.key_data(jax.random.split(jax.random.key(seed), (num_rows, num_samples)))
    rows = NewRows(
        prompt_B=prompt_B,
        token_B=token_B[prompt_B],
        position_B=position_B[prompt_B],
        limit_B=np.full(len(prompt_B), max_new_tokens, np.int32),
        key_B2=keys.reshape(len(prompt_B), -1),
        sampling=filters.settings([Sampling(temperature, top_k, top_p)] * len(prompt_B)),
    )
    stops = config.stop_token_ids if stop_ids is None else tuple(stop_ids)
    _, out = slots.decode(
        decode_weights.prepare(model.params["text"], config.text, len(prompt_B)),
        config,
        max_new_tokens,
        top_k > 0 or top_p < 1,
        slots.fill(free, config, cache, rows),
        np.int32(max_new_tokens),
        np.zeros(len(prompt_B), bool),
        np.asarray(stops or (-1,), np.int32),
        banned_mask(config),
    )
    out = jax.device_get(out)
    shape, after_BK = (num_rows, num_samples), np.arange(max_new_tokens) >= out.count_B[:, None]
    return Generation(
        tokens=np.where(after_BK, config.pad_token_id, out.tokens_BK).reshape(*shape, -1),
        logprobs=out.logprobs_BK.reshape(*shape, -1),
        lengths=out.count_B.reshape(shape),
        finish_reasons=np.where(out.stopped_B, "stop", "length").reshape(shape),
    )
