"""Packs groups of rollouts into rows of one length: assigns groups to rows, and makes the arrays. Host only.

A row holds trees (models/qwen3_5/tree.py): prompts, each once and before its responses. So rollouts of ten and of ten
thousand tokens fill the same compiled shape, and little of it stays empty. A group that is too long for one row is
split over several, with its prompt in each.

Shape suffixes: B rows, T slots of a row, C chunks, J convolution context, P groups, G rollouts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from zppo_jax.models.qwen3_5 import inputs
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.ops.gated_delta import BEGINS, BRANCHES, CONTINUES, chunk_length
from zppo_jax.types import Group, Rollout

SHORTEST_CHUNK = 4
"""The shortest chunk: it holds the whole context of a convolution of four taps."""


@dataclasses.dataclass(frozen=True)
class RowShapes:
    """Static sizes: `num_rows` rows of a micro-batch, each of `num_tokens` slots in chunks of `chunk`, with up to
    `prompts_per_row` prompts; a prompt has up to `prompt_tokens` tokens before its last, and `patch_slots` patches."""

    num_rows: int
    num_tokens: int
    chunk: int
    prompts_per_row: int
    prompt_tokens: int
    patch_slots: int

    def rounded(self, num_tokens: int) -> int:
        """The number of slots that a trunk or a branch takes: whole chunks, at least one."""
        return max(-(-num_tokens // self.chunk), 1) * self.chunk


def shapes(
    num_rows: int,
    row_tokens: int,
    prompts_per_row: int,
    prompt_tokens: int,
    response_tokens: int,
    patch_slots: int,
    longest_chunk: int = 64,
) -> RowShapes:
    """Chooses the sizes: rows of `row_tokens` slots, or as many as the longest prompt and response take, in chunks that
    suit responses, of at most `longest_chunk` slots (ops.gated_delta)."""
    chunk = max(chunk_length(response_tokens, longest_chunk), SHORTEST_CHUNK)
    sizes = RowShapes(num_rows, 0, chunk, prompts_per_row, prompt_tokens, patch_slots)
    longest = sizes.rounded(prompt_tokens) + sizes.rounded(response_tokens)
    return dataclasses.replace(sizes, num_tokens=max(sizes.rounded(row_tokens), longest))


class Part(NamedTuple):
    """A prompt and some of its responses: indices of the group and of its rollouts."""

    group: int
    rollouts: tuple[int, ...]


Row = list[Part]
Groups = Sequence[Group] | Mapping[int, Group]
"""Groups by their index among all groups of a step; a host has some of them."""


def arrange(groups: Groups, chosen: Sequence[int], shapes: RowShapes) -> list[Row]:
    """Assigns the chosen groups to rows, the fullest first: first fit by decreasing size, a function of the lengths."""
    parts = [part for index in chosen for part in _parts(index, groups[index], shapes)]
    rows: list[Row] = []
    free: list[int] = []
    for part in sorted(parts, key=lambda part: (-_size(part, groups, shapes), part)):
        size = _size(part, groups, shapes)
        fits = (r for r, left in enumerate(free) if left >= size and len(rows[r]) < shapes.prompts_per_row)
        row = next(fits, len(rows))
        if row == len(rows):
            rows.append([])
            free.append(shapes.num_tokens)
        rows[row].append(part)
        free[row] -= size
    return rows


def _parts(index: int, group: Group, shapes: RowShapes) -> Iterator[Part]:
    """Splits a group into as few parts as rows can hold."""
    room = shapes.num_tokens - shapes.rounded(group.features.num_tokens - 1)
    bins: list[tuple[int, list[int]]] = []
    sizes = [shapes.rounded(len(rollout.token_ids_T)) for rollout in group.rollouts]
    for rollout in sorted(range(len(sizes)), key=lambda rollout: -sizes[rollout]):
        if sizes[rollout] > room:
            raise ValueError(
                f"prompt {group.prompt.uid} of {group.features.num_tokens} tokens and a response of "
                f"{len(group.rollouts[rollout].token_ids_T)} do not fit a row of {shapes.num_tokens}: raise "
                "update.row_tokens"
            )
        place = next((b for b, (used, _) in enumerate(bins) if used + sizes[rollout] <= room), len(bins))
        if place == len(bins):
            bins.append((0, []))
        used, members = bins[place]
        bins[place] = (used + sizes[rollout], [*members, rollout])
    for _, members in bins:
        yield Part(index, tuple(sorted(members)))


def _size(part: Part, groups: Groups, shapes: RowShapes) -> int:
    group = groups[part.group]
    lengths = [group.features.num_tokens - 1, *(len(group.rollouts[r].token_ids_T) for r in part.rollouts)]
    return sum(map(shapes.rounded, lengths))


# ---------------------------------------------------------------- arrays


def microbatch(
    config: Config, groups: Groups, weights_PG: np.ndarray, rows: Sequence[Row], shapes: RowShapes
) -> dict[str, Any]:
    """Makes the model's inputs from up to `num_rows` rows, and for each slot: target_BT (the id to predict),
    old_logprobs_BT, weights_BT and counted_BT (whether it predicts a sampled token)."""
    parts = [(row, part) for row, members in enumerate(rows) for part in members]
    prompts = inputs.from_features(
        config,
        [groups[part.group].features for _, part in parts],
        shapes.num_rows * shapes.prompts_per_row,
        shapes.prompt_tokens,
        shapes.patch_slots,
    )
    writer = _Writer(shapes, config.text.linear_conv_kernel_dim - 1)
    for place, (row, part) in enumerate(parts):
        group = groups[part.group]
        writer.trunk(row, prompts, place)
        for rollout in part.rollouts:
            writer.branch(row, prompts, place, group.rollouts[rollout], weights_PG[part.group, rollout])
    return writer.arrays | {name: prompts[name] for name in ("patches_ISC", "grid_IS5")}


def by_rollout(
    values_BT: np.ndarray, counted_BT: np.ndarray, groups: Groups, rows: Sequence[Row]
) -> dict[tuple[int, int], np.ndarray]:
    """The values at the sampled tokens of a micro-batch, [T] by (index of the group, index of the rollout)."""
    found: dict[tuple[int, int], np.ndarray] = {}
    for row, members in enumerate(rows):
        laid = [(part.group, rollout) for part in members for rollout in part.rollouts]  # as `microbatch` lays them
        ends = np.cumsum([len(groups[group].rollouts[rollout].token_ids_T) for group, rollout in laid])
        found |= zip(laid, np.split(values_BT[row][counted_BT[row]], ends[:-1]), strict=True)
    return found


def with_logprobs(group: Group, index: int, logprobs: Mapping[tuple[int, int], np.ndarray]) -> Group:
    """The group at `index` with these log-probabilities for its rollouts; those without any keep theirs."""
    rollouts = tuple(
        dataclasses.replace(rollout, logprobs_T=logprobs.get((index, number), rollout.logprobs_T))
        for number, rollout in enumerate(group.rollouts)
    )
    return dataclasses.replace(group, rollouts=rollouts)


AXES = inputs.AXES | dict.fromkeys(("target_BT", "old_logprobs_BT", "weights_BT", "counted_BT"), ("batch", None))
"""Logical names of the axes of a micro-batch."""


def joined_features(feature_BT: np.ndarray, parts: Sequence[int], num_features: int) -> np.ndarray:
    """Converts a host's feature_BT to the indices among all hosts: its rows of patches, `num_features` in all, are in
    the given parts of the global axis, in this order."""
    size = num_features // len(parts)
    shifted_BT = np.asarray(parts, np.int32)[feature_BT // size] * size + feature_BT % size
    return np.where(feature_BT >= 0, shifted_BT, -1).astype(np.int32)


class _Writer:
    """Lays trunks and branches into rows, one behind the other."""

    def __init__(self, shapes: RowShapes, context: int) -> None:
        size = (shapes.num_rows, shapes.num_tokens)
        chunks = (shapes.num_rows, shapes.num_tokens // shapes.chunk)
        self.arrays: dict[str, Any] = {
            "tokens_BT": np.zeros(size, np.int32),
            "mask_BT": np.zeros(size, bool),
            "positions_3BT": np.zeros((3, *size), np.int32),
            "feature_BT": np.full(size, -1, np.int32),
            "segment_BT": np.zeros(size, np.int32),
            "trunk_BT": np.zeros(size, np.int32),
            "source_BC": np.full(chunks, BEGINS, np.int32),
            "is_trunk_BC": np.zeros(chunks, bool),
            "context_BCJ": np.full((*chunks, context), -1, np.int32),
            "target_BT": np.zeros(size, np.int32),
            "old_logprobs_BT": np.zeros(size, np.float32),
            "weights_BT": np.zeros(size, np.float32),
            "counted_BT": np.zeros(size, bool),
        }
        self._shapes, self._context = shapes, context
        self._used = [0] * shapes.num_rows
        self._segments = [0] * shapes.num_rows
        self._trunk = [(0, 0)] * shapes.num_rows  # slots of each row's newest trunk

    def trunk(self, row: int, prompts: dict[str, Any], place: int) -> None:
        mask_T = prompts["mask_BT"][place]
        where = self._lay(row, int(mask_T.sum()), BEGINS)
        for name in ("tokens_BT", "feature_BT"):
            self.arrays[name][row, where] = prompts[name][place][mask_T]
        self.arrays["positions_3BT"][:, row, where] = prompts["positions_3BT"][:, place][:, mask_T]

    def branch(self, row: int, prompts: dict[str, Any], place: int, rollout: Rollout, advantage: float) -> None:
        ids_T = rollout.token_ids_T
        where = self._lay(row, len(ids_T), BRANCHES)
        self.arrays["tokens_BT"][row, where] = np.concatenate([prompts["last_B"][place : place + 1], ids_T[:-1]])
        self.arrays["positions_3BT"][:, row, where] = prompts["last_position_B"][place] + np.arange(len(ids_T))
        values = {"target_BT": ids_T, "old_logprobs_BT": rollout.logprobs_T, "weights_BT": advantage}
        for name, value in (values | {"counted_BT": True}).items():
            self.arrays[name][row, where] = value

    def _lay(self, row: int, num_tokens: int, source: int) -> slice:
        """Reserves whole chunks for a trunk or a branch, records the source of its state and convolution context, and
        returns the slots of its tokens."""
        chunk, start = self._shapes.chunk, self._used[row]
        self._used[row] += self._shapes.rounded(num_tokens)
        self._segments[row] += 1
        where, whole = slice(start, start + num_tokens), slice(start, self._used[row])
        if source == BEGINS:
            self._trunk[row] = (start, start + num_tokens)
        chunks = slice(start // chunk, self._used[row] // chunk)
        slots_CJ = np.arange(chunks.start, chunks.stop)[:, None] * chunk + np.arange(-self._context, 0)
        first_J = self._trunk[row][1] + np.arange(-self._context, 0)
        slots_CJ[0] = np.where((first_J >= self._trunk[row][0]) & (source == BRANCHES), first_J, -1)
        self.arrays["context_BCJ"][row, chunks] = slots_CJ
        self.arrays["source_BC"][row, chunks] = [source] + [CONTINUES] * (chunks.stop - chunks.start - 1)
        self.arrays["is_trunk_BC"][row, chunks] = source == BEGINS
        self.arrays["mask_BT"][row, where] = True
        self.arrays["segment_BT"][row, whole] = self._segments[row]
        trunk_start = self._trunk[row][0]
        self.arrays["trunk_BT"][row, whole] = self.arrays["segment_BT"][row, trunk_start]
        return where
