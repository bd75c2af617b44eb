"""Converts the outputs of a Hugging Face processor (NumPy) to the static-shaped inputs of the model. Host only.

The model's inputs are a dict: tokens_BT int32, mask_BT bool, positions_3BT int32, feature_BT int32 (row of the
flattened vision features that replaces the token's embedding, -1 for text), patches_ISC float32, grid_IS5 int32 (of
each patch slot: number of its frame, row, column, height and width of the frame; see vision.encode).

Shape suffixes: B rows, T tokens, F frames, I rows of packed frames, S patch slots of a row, C patch values, P patches
of all frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from zppo_jax.models.qwen3_5 import tree
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.processor.media import patches_of
from zppo_jax.processor.patches import normalised
from zppo_jax.processor.positions import rope_index
from zppo_jax.types import Features

Inputs = dict[str, Any]
AXES = {
    "tokens_BT": ("batch", None),
    "mask_BT": ("batch", None),
    "positions_3BT": (None, "batch", None),
    "feature_BT": ("batch", None),
    "patches_ISC": ("batch", None, None),
    "grid_IS5": ("batch", None, None),
    "last_B": ("batch",),
    "last_position_B": ("batch",),
} | tree.AXES
"""The logical names of the axes of the inputs (parallel/rules.py)."""

_KIND = {1: "image", 2: "video"}


def frame_sizes(grids_N3: np.ndarray) -> np.ndarray:
    """Expands grids (t, h, w) to one (h, w) for each frame, int32 [F, 2]."""
    grids = np.asarray(grids_N3, np.int64).reshape(-1, 3)
    return np.repeat(grids[:, 1:], grids[:, 0], axis=0).astype(np.int32)


def patch_counts(size_F2: np.ndarray) -> np.ndarray:
    """The number of patches of each frame, int64 [F]."""
    return size_F2[:, 0].astype(np.int64) * size_F2[:, 1]


def bucket(size: int, smallest: int = 16) -> int:
    """The next power of two, so that all sizes give few shapes, and so few compiled programs."""
    return max(smallest, 1 << max(size - 1, 0).bit_length())


def length_bucket(num_tokens: int) -> int:
    """The next of 16, 24, 32, 48, 64, 96, ...: at most half as long again."""
    double = bucket(num_tokens)
    return double if num_tokens > double * 3 // 4 or double == 16 else double * 3 // 4


def place_frames(count_F: np.ndarray, num_slots: int) -> tuple[np.ndarray, int]:
    """The first slot of each frame in rows of `num_slots` (first fit, in order), and the number of rows.

    Raises ValueError for a frame that is larger than a row.
    """
    if len(count_F) and count_F.max() > num_slots:
        raise ValueError(
            f"a frame has {count_F.max()} patches, more than the {num_slots} slots of a row: lower max_pixels"
        )
    used: list[int] = []
    start_F = np.zeros(len(count_F), np.int64)
    for frame, count in enumerate(count_F.tolist()):
        row = next((row for row, taken in enumerate(used) if taken + count <= num_slots), len(used))
        if row == len(used):
            used.append(0)
        start_F[frame] = row * num_slots + used[row]
        used[row] += count
    return start_F, len(used)


def place_in_own_rows(prompts: Sequence[np.ndarray], num_slots: int) -> np.ndarray:
    """The first slots of all frames if each prompt's frames (given by their numbers of patches) have a separate row.

    Raises ValueError for a prompt whose frames do not fit its row.
    """
    for count_F in prompts:
        if count_F.sum() > num_slots:
            raise ValueError(f"the images of a prompt have {count_F.sum()} patches, more than the {num_slots} of a row")
    starts = [row * num_slots + np.cumsum(count_F) - count_F for row, count_F in enumerate(prompts)]
    return np.concatenate([np.zeros(0, np.int64), *starts])


def pack_frames(
    patches_PC: np.ndarray, size_F2: np.ndarray, start_F: np.ndarray, num_slots: int, num_rows: int, merge: int
) -> tuple[np.ndarray, np.ndarray]:
    """Packs consecutive patches of frames at the slots `start_F`; returns (patches_ISC, grid_IS5)."""
    count_F = patch_counts(size_F2)
    if int(count_F.sum()) != len(patches_PC):
        raise ValueError(f"pixel_values has {len(patches_PC)} patches but the grids need {int(count_F.sum())}")
    patches = np.zeros((num_rows * num_slots, patches_PC.shape[-1]), np.float32)
    grid = np.zeros((num_rows * num_slots, 5), np.int32)
    if len(count_F):
        slot_P = np.concatenate([start + np.arange(count) for start, count in zip(start_F, count_F, strict=True)])
        patches[slot_P] = patches_PC
        grid[slot_P] = np.concatenate(
            [_frame_grid(frame, h, w, merge) for frame, (h, w) in enumerate(size_F2.tolist())]
        )
    return patches.reshape(num_rows, num_slots, -1), grid.reshape(num_rows, num_slots, 5)


def _frame_grid(frame: int, height: int, width: int, merge: int) -> np.ndarray:
    """(number, row, column, height, width) of each patch of a frame, in merge-block order."""
    row, col = np.indices((height, width)).reshape(2, height // merge, merge, width // merge, merge).swapaxes(2, 3)
    whole = np.broadcast_to([[frame + 1], [height], [width]], (3, height * width))
    return np.stack([whole[0], row.reshape(-1), col.reshape(-1), whole[1], whole[2]], axis=-1)


def feature_index(
    types_BT: np.ndarray, sizes: dict[int, np.ndarray], starts: dict[int, np.ndarray], merge: int
) -> np.ndarray:
    """The index of the flattened feature of each vision token: tokens of a type consume that type's frames in order."""
    index_BT = np.full(types_BT.shape, -1, np.int32)
    for token_type, size_F2 in sizes.items():
        count_F = (size_F2[:, 0] // merge) * (size_F2[:, 1] // merge)
        first_F = starts[token_type] // merge**2
        parts = [np.arange(first, first + count) for first, count in zip(first_F, count_F, strict=True)]
        feature = np.concatenate(parts or [np.zeros(0, np.int64)])
        where = types_BT == token_type
        if int(where.sum()) != len(feature):
            kind = _KIND[token_type]
            raise ValueError(f"{int(where.sum())} {kind} placeholder tokens for {len(feature)} {kind} features")
        index_BT[where] = feature
    return index_BT


def _row_grids(types_T: np.ndarray, frames: dict[int, list[np.ndarray]]) -> np.ndarray:
    """The grids of one row's vision runs, removed from `frames` in order; every run of a type is one frame."""
    starts = np.flatnonzero(np.diff(types_T, prepend=-1))
    runs = [int(types_T[start]) for start in starts if types_T[start] != 0]
    for token_type in (1, 2):
        if runs.count(token_type) > len(frames[token_type]):
            raise ValueError(f"the prompts hold more runs of {_KIND[token_type]} tokens than there are grids")
    taken = [(1, *frames[token_type].pop(0)) for token_type in runs]
    return np.asarray(taken, np.int32).reshape(-1, 3)


def batch_positions(types_BT: np.ndarray, mask_BT: np.ndarray, sizes: dict[int, np.ndarray], merge: int):
    """Computes M-RoPE rows [3, B, T] and deltas [B] over the unpadded tokens; padded slots get 0."""
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
    """Makes the model's inputs and the rope deltas [B] from the outputs of a Hugging Face processor.

    Either padding side; no mask means all ones. Rows are padded on the right to a bucket of lengths, and patches to
    buckets of rows and slots, so that new sizes compile little. Raises ValueError if placeholders, grids and patches
    disagree.
    """
    tokens_BT = np.asarray(input_ids).astype(np.int32)
    mask_BT = np.ones(tokens_BT.shape, bool) if attention_mask is None else np.asarray(attention_mask) != 0
    types_BT = np.where(mask_BT, _token_types(config, tokens_BT, mm_token_type_ids), 0)
    padding = [(0, 0), (0, length_bucket(tokens_BT.shape[1]) - tokens_BT.shape[1])]
    tokens_BT, mask_BT, types_BT = (np.pad(array, padding) for array in (tokens_BT, mask_BT, types_BT))
    none = np.zeros((0, 3), np.int32)
    sizes = {1: frame_sizes(none if image_grid_thw is None else image_grid_thw)}
    sizes[2] = frame_sizes(none if video_grid_thw is None else video_grid_thw)
    vision, starts = _pack_by_type(config, sizes, {1: pixel_values, 2: pixel_values_videos})
    positions_3BT, deltas_B = batch_positions(types_BT, mask_BT, sizes, config.vision.spatial_merge_size)
    inputs = {"tokens_BT": tokens_BT, "mask_BT": mask_BT, "positions_3BT": positions_3BT} | vision
    inputs["feature_BT"] = feature_index(types_BT, sizes, starts, config.vision.spatial_merge_size)
    return inputs, deltas_B


def _pack_by_type(
    config: Config, sizes: dict[int, np.ndarray], pixels: dict[int, np.ndarray | None]
) -> tuple[Inputs, dict[int, np.ndarray]]:
    """Packs the frames of images and videos in shapes from the buckets; returns them and each type's first slots."""
    given = [np.asarray(rows) for rows in pixels.values() if rows is not None]
    patches_PC = np.concatenate(given) if given else np.zeros((0, config.vision.patch_dim), np.float32)
    size_F2 = np.concatenate([sizes[1], sizes[2]])
    count_F = patch_counts(size_F2)
    num_slots = bucket(int(count_F.max(initial=1)))
    start_F, needed = place_frames(count_F, num_slots)
    num_rows = bucket(needed, smallest=1)
    merge = config.vision.spatial_merge_size
    patches_ISC, grid_IS5 = pack_frames(patches_PC, size_F2, start_F, num_slots, num_rows, merge)
    split = len(sizes[1])
    return {"patches_ISC": patches_ISC, "grid_IS5": grid_IS5}, {1: start_F[:split], 2: start_F[split:]}


def from_features(
    config: Config,
    features: Sequence[Features],
    num_rows: int,
    num_tokens: int,
    num_slots: int,
) -> Inputs:
    """Packs prompts to static shapes, right-padded to `num_tokens` slots; rows beyond `features` are empty.

    Each prompt's last token is kept separate (`last_B`, `last_position_B`): it is the first input of the response, both
    in sampling and in training. Each prompt has a row of `num_slots` patches for its images. Raises ValueError if
    something does not fit.
    """
    batch = {
        "tokens_BT": np.zeros((num_rows, num_tokens), np.int32),
        "mask_BT": np.zeros((num_rows, num_tokens), bool),
        "positions_3BT": np.zeros((3, num_rows, num_tokens), np.int32),
        "last_B": np.zeros(num_rows, np.int32),
        "last_position_B": np.zeros(num_rows, np.int32),
    }
    vision_BT = np.zeros((num_rows, num_tokens), np.int32)
    for row, prompt in enumerate(features):
        length = prompt.num_tokens - 1
        if length > num_tokens:
            raise ValueError(f"a prompt of {prompt.num_tokens} tokens does not fit a bucket of {num_tokens}")
        batch["tokens_BT"][row, :length] = prompt.token_ids_T[:-1]
        batch["mask_BT"][row, :length] = True
        batch["positions_3BT"][:, row, :length] = prompt.positions_3T[:, :-1]
        vision_BT[row, :length] = prompt.token_types_T[:-1] > 0  # images and videos are in the order of the prompt
        batch["last_B"][row] = prompt.token_ids_T[-1]
        batch["last_position_B"][row] = prompt.positions_3T[0, -1]
    merge, none = config.vision.spatial_merge_size, np.zeros((0, config.vision.patch_dim), np.float32)
    sizes = [frame_sizes(prompt.grid_thw_N3) for prompt in features]
    size_F2 = np.concatenate([np.zeros((0, 2), np.int32), *sizes])
    start_F = place_in_own_rows([patch_counts(one) for one in sizes], num_slots)
    patches_PC = np.concatenate([none, *map(normalised, patches_of(features))])
    packed = pack_frames(patches_PC, size_F2, start_F, num_slots, num_rows, merge)
    batch["patches_ISC"], batch["grid_IS5"] = packed
    batch["feature_BT"] = feature_index(vision_BT, {1: size_F2}, {1: start_F}, merge)
    return batch
