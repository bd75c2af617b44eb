"""Prompts and engines for models other than the one of tests/tiny_model.py, whose compiler they share."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from tests import tiny_model
from tests.models import tiny
from zppo_jax.compilation import Compiler
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import config as configs
from zppo_jax.models.qwen3_5 import inputs
from zppo_jax.rollout.banned import banned_mask
from zppo_jax.rollout.engine import Engine
from zppo_jax.rollout.shapes import Shapes
from zppo_jax.types import Features, Group, Prompt, Question, Rollout
from zppo_jax.update import programs, rows

_logprobs = jax.jit(inspect.unwrap(programs.logprobs), static_argnums=(1, 3), compiler_options=tiny.FAST_COMPILE)


def trainers_logprobs(
    model: qwen3_5.Model,
    prompts: Sequence[Features],
    samples: Sequence[Sequence[np.ndarray]],
    temperature: float = 1.0,
    patch_slots: int = 16,
) -> list[list[np.ndarray]]:
    """The trainer's log-probabilities of responses (token ids) to prompts, each prompt in a separate row."""
    question = Question("q", "", (), "", "math")
    groups = [
        Group(
            Prompt("q", "plain", question, ""),
            prompt,
            tuple(Rollout(ids, np.zeros(len(ids), np.float32), "stop", "", True, None, "") for ids in responses),
        )
        for prompt, responses in zip(prompts, samples, strict=True)
    ]
    longest = max(prompt.num_tokens - 1 for prompt in prompts), max(len(ids) for group in samples for ids in group)
    shapes = rows.shapes(len(groups), 0, 1, *longest, patch_slots)
    room = shapes.rounded(longest[0]) + max(sum(shapes.rounded(len(ids)) for ids in group) for group in samples)
    shapes = dataclasses.replace(shapes, num_tokens=room)
    placed = [[rows.Part(index, tuple(range(len(group))))] for index, group in enumerate(samples)]
    advantages_PG = np.zeros((len(groups), max(map(len, samples))))
    micro = rows.microbatch(model.config, groups, advantages_PG, placed, shapes)
    found_BT = np.asarray(_logprobs(model.params, model.config, micro, temperature, banned(model)))
    masks = [[(micro["segment_BT"][b] == 2 + g) & micro["counted_BT"][b] for g in range(len(group))]
           for b, group in enumerate(samples)]  # fmt: skip
    return [[found_BT[b][mask_T] for mask_T in group] for b, group in enumerate(masks)]


VISION_IDS = [tiny.CONFIG[f"{name}_token_id"] for name in ("image", "video", "vision_start", "vision_end")]


@functools.cache
def small_model(
    vocab: int, seed: int = 0, num_layers: int = 2, hidden: int = 32, stop_ids: tuple[int, ...] = ()
) -> qwen3_5.Model:
    """A linear and a full layer in turns, every parameter random: as quick as it gets."""
    raw = tiny.config_dict(
        tie_word_embeddings=False,
        text__hidden_size=hidden,
        text__intermediate_size=2 * hidden,
        text__num_hidden_layers=num_layers,
        text__full_attention_interval=2,
        text__head_dim=32,
        text__rope_parameters=tiny.CONFIG["text_config"]["rope_parameters"] | {"partial_rotary_factor": 0.5},
        vision__depth=1,
        vision__out_hidden_size=hidden,
    )
    config = configs.from_dict(raw)
    text = dataclasses.replace(config.text, vocab_size=vocab)  # fewer than any file: the image tokens do not exist
    config = dataclasses.replace(config, text=text, stop_token_ids=stop_ids)
    return qwen3_5.Model(config, tiny.random_params(config, seed))


def banned(model: qwen3_5.Model, without: Sequence[int] = ()) -> np.ndarray:
    """The ids of vision, and those of `without`, bool [V]."""
    banned_V = banned_mask(model.config)
    banned_V[list(without)] = True
    return banned_V


def engine(
    model: qwen3_5.Model,
    name: str,
    shapes: Shapes,
    num_slots: int,
    prompts_per_call: int = 2,
    chunk: int = 16,
    without: Sequence[int] = (),
    compiler: Compiler | None = None,
    **settings: Any,
) -> Engine:
    """An engine of any model. `name` must differ from model to model, as its programs do.

    `compiler`: for programs that run longer than they compile.
    """
    key = f"{name}, {num_slots} slots, {prompts_per_call} prompts in {shapes}, {chunk} tokens, {without}, {settings}: "
    return Engine(
        model.config,
        shapes,
        num_slots,
        prompts_per_call,
        banned(model, without),
        compiler or tiny_model.compiler(),
        key,
        chunk,
        **settings,
    )


def text_features(ids: Sequence[int] | np.ndarray) -> Features:
    """A prompt of these tokens, without images."""
    length = len(ids)
    positions_3T = np.broadcast_to(np.arange(length, dtype=np.int32), (3, length))
    none = np.zeros((0, 1536), np.float32), np.zeros((0, 3), np.int32)
    return Features(np.asarray(ids, np.int32), np.zeros(length, np.int32), positions_3T, 0, *none)


def features_of(config: configs.Config, hf_inputs: dict[str, np.ndarray]) -> list[Features]:
    """The prompts of a batch in the form of a Hugging Face processor, each with its own images and without pads."""
    batch, deltas_B = inputs.from_hf(config, **hf_inputs)
    grids_N3 = np.asarray(hf_inputs.get("image_grid_thw", np.zeros((0, 3))), np.int32)
    patches_PC = hf_inputs.get("pixel_values", np.zeros((0, config.vision.patch_dim), np.float32))
    patches = np.split(patches_PC, np.cumsum(grids_N3.prod(axis=1))[:-1]) if len(grids_N3) else []
    found, taken = [], 0
    for row, mask_T in enumerate(hf_inputs["attention_mask"] != 0):
        ids_T, types_T = (hf_inputs[name][row][mask_T].astype(np.int32) for name in ("input_ids", "mm_token_type_ids"))
        count = int((ids_T == config.vision_start_token_id).sum())
        images = slice(taken, taken + count)
        taken += count
        shown = np.concatenate([np.zeros((0, config.vision.patch_dim), np.float32), *patches[images]])
        positions_3T = np.asarray(batch["positions_3BT"])[:, row, : len(mask_T)][:, mask_T].astype(np.int32)
        found.append(Features(ids_T, types_T, positions_3T, int(deltas_B[row]), shown, grids_N3[images]))
    assert taken == len(grids_N3)
    return found


def letters(token_ids_T: np.ndarray) -> str:
    """A text with one letter per token: of the alphabet, or a character after it."""
    return "".join(chr(97 + int(token)) for token in token_ids_T)
