"""M-RoPE positions of a prompt with images and videos.

Shape suffixes: T tokens, N images and videos; 3 is (time, height, width).
"""

from __future__ import annotations

from collections import deque

import numpy as np

TEXT, IMAGE, VIDEO = 0, 1, 2


def rope_index(token_types_T: np.ndarray, grid_thw_N3: np.ndarray, merge: int = 2) -> tuple[np.ndarray, int]:
    """Positions of every token on the axes time, height and width.

    `token_types_T`: 0 text, 1 image, 2 video. `grid_thw_N3`: grids of the images and videos in patches, in the order of
    the prompt. Text advances all three axes by one; an image has one time and spreads over height and width, and the
    text after it continues after its longer side. Each frame of a video is a separate run (time stamps are between the
    frames), so a video row [t, h, w] covers t runs.

    Returns positions [3, T] int32 and the rope delta: add it to the number of tokens so far to get the position of the
    next one. Raises ValueError if runs and grids disagree.
    """
    token_types_T = np.asarray(token_types_T)
    num_tokens = len(token_types_T)
    if num_tokens == 0:
        raise ValueError("token_types_T is empty: a prompt has at least one token")
    pending = deque((int(t), int(h), int(w)) for t, h, w in np.asarray(grid_thw_N3).reshape(-1, 3))
    position = 0
    parts = []
    for kind, length in _runs(token_types_T):
        if kind == TEXT:
            parts.append(np.broadcast_to(np.arange(position, position + length), (3, length)))
            position += length
            continue
        t, h, w = _next_grid(pending, kind, merge)
        if t * h * w != length:
            raise ValueError(f"a run of {length} tokens of type {kind} does not fit its grid of {t}x{h}x{w} tokens")
        parts.append(position + np.indices((t, h, w)).reshape(3, -1))
        position += max(h, w)
    if pending:
        raise ValueError(f"{len(pending)} grids are left over: the prompt holds too few runs of image or video tokens")
    positions_3T = np.concatenate(parts, axis=1).astype(np.int32)
    return positions_3T, int(positions_3T.max()) + 1 - num_tokens


def _runs(token_types_T: np.ndarray) -> list[tuple[int, int]]:
    """(type, length) of the runs of equal token types."""
    starts = np.flatnonzero(np.diff(token_types_T, prepend=-1))
    lengths = np.diff(np.append(starts, len(token_types_T)))
    return [(int(token_types_T[start]), int(length)) for start, length in zip(starts, lengths, strict=True)]


def _next_grid(pending: deque[tuple[int, int, int]], kind: int, merge: int) -> tuple[int, int, int]:
    """Takes the grid of the next run off `pending`, in tokens: a whole image, or one frame of a video."""
    if kind not in (IMAGE, VIDEO):
        raise ValueError(f"token type {kind} is none of 0 (text), 1 (image), 2 (video)")
    if not pending:
        raise ValueError(f"a run of tokens of type {kind} has no grid: the prompt holds more runs than grids")
    t, h, w = pending.popleft()
    if kind == VIDEO:
        if t > 1:
            pending.appendleft((t - 1, h, w))
        t = 1
    return t, h // merge, w // merge
