"""Padded batches under the names and types of transformers' processors.

Shape suffixes: T tokens, B rows of a batch, I patches, C values of one patch, N images or videos.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from zppo_jax.processor.patches import normalised
from zppo_jax.processor.positions import IMAGE, VIDEO
from zppo_jax.types import Features

PaddingSide = Literal["left", "right"]


def hf_batch(rows: Sequence[Features], pad_id: int, padding_side: PaddingSide) -> dict[str, np.ndarray]:
    """int64 [B, T] `input_ids`, `attention_mask`, `mm_token_type_ids`.

    With images also float32 [I, C] `pixel_values` and int64 [N, 3] `image_grid_thw`, with videos
    `pixel_values_videos` and `video_grid_thw`; each in the order of the rows.
    """
    batch = {
        "input_ids": _pad([row.token_ids_T for row in rows], pad_id, padding_side),
        "attention_mask": _pad([np.ones(row.num_tokens) for row in rows], 0, padding_side),
        "mm_token_type_ids": _pad([row.token_types_T for row in rows], 0, padding_side),
    }
    names = {IMAGE: ("pixel_values", "image_grid_thw"), VIDEO: ("pixel_values_videos", "video_grid_thw")}
    for kind, (patches_name, grids_name) in names.items():
        parts = [_of_kind(row, kind) for row in rows]
        if any(len(grid_thw_N3) for _, grid_thw_N3 in parts):
            batch[patches_name] = normalised(np.concatenate([patches_IC for patches_IC, _ in parts]))
            batch[grids_name] = np.concatenate([grid_thw_N3 for _, grid_thw_N3 in parts]).astype(np.int64)
    return batch


def _of_kind(row: Features, kind: int) -> tuple[np.ndarray, np.ndarray]:
    """Patches and grids of one row's images or videos."""
    chosen_N = row.grid_types_N == kind
    chosen_I = np.repeat(chosen_N, row.grid_thw_N3.prod(axis=1))
    return row.patches_IC[chosen_I], row.grid_thw_N3[chosen_N]


def _pad(rows: Sequence[np.ndarray], value: int, padding_side: PaddingSide) -> np.ndarray:
    longest = max(len(row) for row in rows)
    padded_BT = np.full((len(rows), longest), value, np.int64)
    for padded_T, row in zip(padded_BT, rows, strict=True):
        place = slice(longest - len(row), None) if padding_side == "left" else slice(len(row))
        padded_T[place] = row
    return padded_BT
