"""Admits waiting rollouts to slots: makes the arrays that `fill` reads.

Shape suffixes: P prompts, B rows (slots), T prompt tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zppo_jax.keys import RandomStream
from zppo_jax.models.qwen3_5.inputs import Inputs
from zppo_jax.rollout import filters
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.requests import Request, row_keys
from zppo_jax.rollout.state import NewRows


class Admission(NamedTuple):
    """One admission: sample `index` of a request gets `slot`, and continues row `prompt` of the prefilled batch by at
    most `limit` tokens."""

    slot: int
    prompt: int
    request: Request
    index: int
    limit: int


def new_rows(admitted: Sequence[Admission], batch: Inputs, num_slots: int, num_seen: int) -> NewRows:
    """Makes the arrays for slots.fill from prompts of `batch`; with `num_seen` V > 0 also each prompt's tokens."""
    prompt_B, limit_B = np.full(num_slots, -1, np.int32), np.zeros(num_slots, np.int32)
    sampling, keys_of = [Sampling()] * num_slots, [(RandomStream(), "", 0)] * num_slots
    for slot, prompt, request, index, limit in admitted:
        prompt_B[slot], limit_B[slot], sampling[slot] = prompt, limit, request.sampling
        keys_of[slot] = (request.draw, request.uid, index)
    place_B = np.maximum(prompt_B, 0)
    return NewRows(
        prompt_B=prompt_B,
        token_B=batch["last_B"][place_B],
        position_B=batch["last_position_B"][place_B],
        limit_B=limit_B,
        key_B2=row_keys(keys_of),
        sampling=filters.settings(sampling),
        seen_PV=_seen(batch, num_seen) if num_seen else None,
    )


def _seen(batch: Inputs, vocab_size: int) -> np.ndarray:
    """Whether each prompt contains each token, bool [P, V]."""
    seen_PV = np.zeros((len(batch["tokens_BT"]), vocab_size), bool)
    for row, (tokens_T, mask_T, last) in enumerate(
        zip(batch["tokens_BT"], batch["mask_BT"], batch["last_B"], strict=True)
    ):
        seen_PV[row, tokens_T[mask_T]] = True
        seen_PV[row, last] = True
    return seen_PV
