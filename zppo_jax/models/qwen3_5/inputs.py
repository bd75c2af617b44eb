"""From what a Hugging Face processor returns (NumPy) to the static-shaped arrays that the model reads. Host only.

The model's inputs are a dict: tokens_BT int32, mask_BT bool, positions_3BT int32, feature_BT int32 (row of the
flattened vision features that replaces the token's embedding, -1 for text), patches_ISC float32, size_I2 int32.

Shape suffixes: B rows, T tokens, I frames, S patch slots of a frame, C patch values, P patches of all images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.processor.positions import rope_index
from zppo_jax.types import Features

Inputs = dict[str, Any]
_KIND = {1: "image", 2: "video"}


def frame_sizes(grids_N3: np.ndarray) -> np.ndarray:
    """Grids (t, h, w) -> one (h, w) for each frame, int32 [I, 2]."""
    grids = np.asarray(grids_N3, np.int64).reshape(-1, 3)
    return np.repeat(grids[:, 1:], grids[:, 0], axis=0).astype(np.int32)


def pack_frames(
    patches_PC: np.ndarray, size_I2: np.ndarray, num_slots: int, num_frames: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split consecutive patches into frames padded to `num_slots`, and pad with empty frames to `num_frames`."""
    counts = size_I2[:, 0].astype(np.int64) * size_I2[:, 1]
    if int(counts.sum()) != len(patches_PC):
        raise ValueError(f"pixel_values has {len(patches_PC)} patches but the grids need {int(counts.sum())}")
    if len(counts) and counts.max() > num_slots:
        raise ValueError(f"a frame has {counts.max()} patches, more than the {num_slots} slots; raise the patch bucket")
    packed = np.zeros((num_frames, num_slots, patches_PC.shape[-1]), np.float32)
    sizes = np.zeros((num_frames, 2), np.int32)
    sizes[: len(counts)] = size_I2
    packed[: len(counts)][np.arange(num_slots) < counts[:, None]] = patches_PC
    return packed, sizes


def feature_index(
    types_BT: np.ndarray, sizes: dict[int, np.ndarray], first_frame: dict[int, int], num_slots: int, merge: int
) -> np.ndarray:
    """Which flattened feature each vision token takes: tokens of a type consume that type's frames in order."""
    index_BT = np.full(types_BT.shape, -1, np.int32)
    for token_type, size_I2 in sizes.items():
        per_frame = (size_I2[:, 0] // merge) * (size_I2[:, 1] // merge)
        frame = np.repeat(np.arange(len(per_frame)), per_frame)
        slot = np.concatenate([np.arange(count) for count in per_frame] or [np.zeros(0, np.int64)])
        where = types_BT == token_type
        if int(where.sum()) != len(slot):
            kind = _KIND[token_type]
            raise ValueError(f"{int(where.sum())} {kind} placeholder tokens for {len(slot)} {kind} features")
        index_BT[where] = (frame + first_frame[token_type]) * (num_slots // merge**2) + slot
    return index_BT


def _row_grids(types_T: np.ndarray, frames: dict[int, list[np.ndarray]]) -> np.ndarray:
    """The grids of one row's vision runs, taken off `frames` in order; every run of a type is one frame."""
    starts = np.flatnonzero(np.diff(types_T, prepend=-1))
    runs = [int(types_T[start]) for start in starts if types_T[start] != 0]
    for token_type in (1, 2):
        if runs.count(token_type) > len(frames[token_type]):
            raise ValueError(f"the prompts hold more runs of {_KIND[token_type]} tokens than there are grids")
    taken = [(1, *frames[token_type].pop(0)) for token_type in runs]
    return np.asarray(taken, np.int32).reshape(-1, 3)


def batch_positions(types_BT: np.ndarray, mask_BT: np.ndarray, sizes: dict[int, np.ndarray], merge: int):
    """M-RoPE rows [3, B, T] and deltas [B] over the unpadded tokens; padded slots get 0."""
    positions_3BT = np.zeros((3, *types_BT.shape), np.int32)
    deltas_B = np.zeros(len(types_BT), np.int32)
    frames = {token_type: list(sizes[token_type]) for token_type in sizes}
    for row, (types_T, mask_T) in enumerate(zip(types_BT, mask_BT, strict=True)):
        valid_T = types_T[mask_T]
        if len(valid_T):
            positions_3BT[:, row, mask_T], deltas_B[row] = rope_index(valid_T, _row_grids(valid_T, frames), merge)
    return positions_3BT, deltas_B


def _token_types(config: Config, tokens_BT: np.ndarray, given: np.ndarray | None) -> np.ndarray:
    if given is not None:
        return np.asarray(given)
    return (tokens_BT == config.image_token_id) + 2 * (tokens_BT == config.video_token_id)


def from_hf(
    config: Config,
    *,
    input_ids: np.ndarray,
    attention_mask: np.ndarray | None = None,
    mm_token_type_ids: np.ndarray | None = None,
    pixel_values: np.ndarray | None = None,
    image_grid_thw: np.ndarray | None = None,
    pixel_values_videos: np.ndarray | None = None,
    video_grid_thw: np.ndarray | None = None,
) -> tuple[Inputs, np.ndarray]:
    """The model's inputs and the rope deltas [B] for exactly what a Hugging Face processor returns.

    Either padding side; no mask means all ones. Raises ValueError when placeholders, grids and patches disagree.
    """
    tokens_BT = np.asarray(input_ids).astype(np.int32)
    mask_BT = np.ones(tokens_BT.shape, bool) if attention_mask is None else np.asarray(attention_mask) != 0
    types_BT = np.where(mask_BT, _token_types(config, tokens_BT, mm_token_type_ids), 0)
    vision, none = config.vision, np.zeros((0, 3), np.int32)
    sizes = {1: frame_sizes(none if image_grid_thw is None else image_grid_thw)}
    sizes[2] = frame_sizes(none if video_grid_thw is None else video_grid_thw)
    patches = [np.asarray(rows) for rows in (pixel_values, pixel_values_videos) if rows is not None]
    patches_PC = np.concatenate(patches) if patches else np.zeros((0, vision.patch_dim), np.float32)
    size_I2 = np.concatenate([sizes[1], sizes[2]])
    num_slots = int(max((size_I2[:, 0] * size_I2[:, 1]).tolist(), default=vision.spatial_merge_size**2))
    patches_ISC, size_I2 = pack_frames(patches_PC, size_I2, num_slots, max(len(size_I2), 1))
    first_frame = {1: 0, 2: len(sizes[1])}
    positions_3BT, deltas_B = batch_positions(types_BT, mask_BT, sizes, vision.spatial_merge_size)
    inputs = {
        "tokens_BT": tokens_BT,
        "mask_BT": mask_BT,
        "positions_3BT": positions_3BT,
        "feature_BT": feature_index(types_BT, sizes, first_frame, num_slots, vision.spatial_merge_size),
        "patches_ISC": patches_ISC,
        "size_I2": size_I2,
    }
    return inputs, deltas_B


def from_features(
    config: Config,
    features: Sequence[Features],
    num_rows: int,
    num_tokens: int,
    num_slots: int,
    frames_per_row: int = 1,
) -> Inputs:
    """Prompts packed to static shapes, right-padded to `num_tokens` slots; rows beyond `features` are empty.

    Each prompt's last token is kept apart (`last_B`, `last_position_B`): it is the first input of the response, in
    sampling and in training alike. `num_slots` bounds the patches of a frame, `frames_per_row` the mean frames a row.
    """
    merge = config.vision.spatial_merge_size
    batch = {
        "tokens_BT": np.zeros((num_rows, num_tokens), np.int32),
        "mask_BT": np.zeros((num_rows, num_tokens), bool),
        "positions_3BT": np.zeros((3, num_rows, num_tokens), np.int32),
        "last_B": np.zeros(num_rows, np.int32),
        "last_position_B": np.zeros(num_rows, np.int32),
    }
    types_BT = np.zeros((num_rows, num_tokens), np.int32)
    for row, prompt in enumerate(features):
        length = prompt.num_tokens - 1
        if length > num_tokens:
            raise ValueError(f"a prompt of {prompt.num_tokens} tokens does not fit a bucket of {num_tokens}")
        batch["tokens_BT"][row, :length] = prompt.token_ids_T[:-1]
        batch["mask_BT"][row, :length] = True
        batch["positions_3BT"][:, row, :length] = prompt.positions_3T[:, :-1]
        types_BT[row, :length] = prompt.token_types_T[:-1]
        batch["last_B"][row] = prompt.token_ids_T[-1]
        batch["last_position_B"][row] = prompt.positions_3T[0, -1]
    grids = [prompt.grid_thw_N3 for prompt in features]
    size_I2 = frame_sizes(np.concatenate(grids) if grids else np.zeros((0, 3), np.int32))
    patches_PC = [prompt.patches_IC for prompt in features if len(prompt.patches_IC)]
    patches_PC = np.concatenate(patches_PC) if patches_PC else np.zeros((0, config.vision.patch_dim), np.float32)
    num_frames = num_rows * max(frames_per_row, -(-len(size_I2) // num_rows))
    batch["feature_BT"] = feature_index(types_BT, {1: size_I2}, {1: 0}, num_slots, merge)
    batch["patches_ISC"], batch["size_I2"] = pack_frames(patches_PC, size_I2, num_slots, num_frames)
    return batch
