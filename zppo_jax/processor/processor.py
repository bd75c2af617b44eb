"""From a user turn to what the model reads, and back from sampled ids to text.

Shape suffixes: T tokens, B rows of a batch, I image patches, C values of one patch, N images.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from tokenizers import Tokenizer

from zppo_jax.processor import directory as files
from zppo_jax.processor.chat import TEXT_SLOT, UserTurn, render_user_turn
from zppo_jax.processor.images import ProcessorConfig, patchify
from zppo_jax.processor.positions import IMAGE, VIDEO, rope_index
from zppo_jax.processor.tokenizer import (
    END_OF_TEXT,
    IM_END,
    IM_START,
    IMAGE_PAD,
    VIDEO_PAD,
    VISION_END,
    VISION_PAD,
    VISION_START,
    PromptEncoder,
)
from zppo_jax.types import Features

_NEVER_SAMPLED = (IM_START, VISION_START, VISION_END, VISION_PAD, IMAGE_PAD, VIDEO_PAD)


class Processor:
    """Tokenizer, chat template and image preprocessing of one checkpoint.

    Attributes: `stop_ids` end a response (`<|im_end|>` first, and `<|endoftext|>`: the published configs disagree on
    which one it is, so both stop). `banned_ids` must never be sampled: they would open a turn or an image in the
    middle of a response. `vocab_size` is one more than the highest id; a model's embedding may have rows beyond it.
    `response_prefix` is the part of the response that the generation prompt holds already.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_template: str,
        config: ProcessorConfig,
        stop_ids: Sequence[int] = (),
    ):
        """`stop_ids` are added to the two that always stop. ValueError: another model's tokenizer or template."""
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.config = config
        self._encoder = PromptEncoder(tokenizer)
        ids = self._encoder.control_ids
        self.pad_id = ids[END_OF_TEXT]
        self.image_token_id = ids[IMAGE_PAD]
        self.video_token_id = ids[VIDEO_PAD]
        self.stop_ids = tuple(dict.fromkeys((ids[IM_END], ids[END_OF_TEXT], *stop_ids)))
        self.banned_ids = tuple(sorted(ids[token] for token in _NEVER_SAMPLED))
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.response_prefix = "<think>\n" if config.enable_thinking else ""
        self._check_generation_prompt()

    @classmethod
    def from_directory(cls, directory: str | os.PathLike[str], **overrides: Any) -> Self:
        """Reads the processor of a checkpoint directory; `overrides` replace fields of ProcessorConfig.

        Checkpoints do not say whether to think: `enable_thinking` is True unless overridden.
        """
        path = Path(directory)
        config = dataclasses.replace(files.read_config(path), **overrides)
        return cls(files.read_tokenizer(path), files.read_chat_template(path), config, files.read_stop_ids(path))

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes the files that `from_directory` and transformers' AutoTokenizer read."""
        files.write(Path(directory), self.tokenizer, self.chat_template, self.config, self.stop_ids)

    def render(self, text: str, num_images: int) -> str:
        """The prompt as the model sees it, as one string with one placeholder per image; for people and logs."""
        return self._turn(text, num_images).full_text

    def features(self, text: str, images: Sequence[np.ndarray]) -> Features:
        """One user turn, images first, with the generation prompt.

        `images` are RGB uint8 [H, W, 3]. Whatever `text` spells, it adds neither image slots nor turns. Raises
        ValueError for an unfit image.
        """
        patches_IC, grid_thw_N3 = patchify(images, self.config)
        turn = self._turn(text, len(images))
        ids = self._encoder.encode(turn.rendered, TEXT_SLOT, turn.text)
        token_ids_T = self._expand_images(np.asarray(ids, np.int32), grid_thw_N3)
        token_types_T = self._token_types(token_ids_T)
        positions_3T, rope_delta = rope_index(token_types_T, grid_thw_N3, self.config.merge_size)
        return Features(token_ids_T, token_types_T, positions_3T, rope_delta, patches_IC, grid_thw_N3)

    def hf_inputs(
        self, samples: Sequence[tuple[str, Sequence[np.ndarray]]], padding_side: Literal["left", "right"] = "left"
    ) -> dict[str, np.ndarray]:
        """A padded batch of (text, images) under the names and types of transformers' processors.

        int64 [B, T] `input_ids`, `attention_mask`, `mm_token_type_ids`; with images also float32 [I, C]
        `pixel_values` and int64 [N, 3] `image_grid_thw`.
        """
        if not samples or padding_side not in ("left", "right"):
            raise ValueError(
                f"{len(samples)} samples, padding_side={padding_side!r}: give samples and 'left' or 'right'"
            )
        rows = [self.features(text, images) for text, images in samples]
        batch = {
            "input_ids": _pad([row.token_ids_T for row in rows], self.pad_id, padding_side),
            "attention_mask": _pad([np.ones(row.num_tokens) for row in rows], 0, padding_side),
            "mm_token_type_ids": _pad([row.token_types_T for row in rows], 0, padding_side),
        }
        if any(len(row.grid_thw_N3) for row in rows):
            batch["pixel_values"] = np.concatenate([row.patches_IC for row in rows])
            batch["image_grid_thw"] = np.concatenate([row.grid_thw_N3 for row in rows]).astype(np.int64)
        return batch

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text, without a template; never the id of a control token."""
        return self._encoder.encode_text(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of sampled ids.

        Stop tokens and the other special tokens are dropped, thinking and tool tags kept, as in transformers'
        `skip_special_tokens`. Bytes that are no UTF-8 become U+FFFD; ids beyond the vocabulary are dropped.
        """
        kept = [int(token) for token in ids if int(token) not in self.stop_ids]
        return self.tokenizer.decode(kept, skip_special_tokens=True)

    def __reduce__(self) -> tuple[Any, ...]:
        # Data workers receive the processor; the copy for user text cannot travel (its switch is not serialised).
        return type(self), (self.tokenizer, self.chat_template, self.config, self.stop_ids)

    def _turn(self, text: str, num_images: int) -> UserTurn:
        return render_user_turn(self.chat_template, text, num_images, enable_thinking=self.config.enable_thinking)

    def _expand_images(self, token_ids_T: np.ndarray, grid_thw_N3: np.ndarray) -> np.ndarray:
        """Repeats each image's placeholder once per merged block of patches."""
        slots = np.flatnonzero(token_ids_T == self.image_token_id)
        if len(slots) != len(grid_thw_N3):
            raise ValueError(f"the chat template made {len(slots)} image slots for {len(grid_thw_N3)} images")
        repeats_T = np.ones(len(token_ids_T), np.int64)
        repeats_T[slots] = grid_thw_N3.prod(axis=1) // self.config.merge_size**2
        return np.repeat(token_ids_T, repeats_T)

    def _token_types(self, token_ids_T: np.ndarray) -> np.ndarray:
        is_image_T = token_ids_T == self.image_token_id
        is_video_T = token_ids_T == self.video_token_id
        return (IMAGE * is_image_T + VIDEO * is_video_T).astype(np.int32)

    def _check_generation_prompt(self) -> None:
        """A template that ignores `enable_thinking` would train the model on a prompt nobody asked for."""
        rendered = self._turn("x", 0).rendered
        expected = "<|im_start|>assistant\n<think>\n" + ("" if self.config.enable_thinking else "\n</think>\n\n")
        if not rendered.endswith(expected):
            raise ValueError(
                f"with enable_thinking={self.config.enable_thinking} the chat template ends its prompt with "
                f"{rendered[-60:]!r}, not {expected!r}: use the chat_template.jinja of a Qwen3.5 checkpoint"
            )


def _pad(rows: Sequence[np.ndarray], value: int, padding_side: Literal["left", "right"]) -> np.ndarray:
    longest = max(len(row) for row in rows)
    padded_BT = np.full((len(rows), longest), value, np.int64)
    for padded_T, row in zip(padded_BT, rows, strict=True):
        place = slice(longest - len(row), None) if padding_side == "left" else slice(len(row))
        padded_T[place] = row
    return padded_BT
