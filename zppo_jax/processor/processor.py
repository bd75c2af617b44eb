"""Converts a user turn to the model's input, and sampled ids back to text.

Shape suffixes: T tokens, B rows of a batch, I patches, C values of one patch, N images and videos.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from tokenizers import Tokenizer

from zppo_jax.processor import directory as files
from zppo_jax.processor import preprocessing
from zppo_jax.processor.batch import PaddingSide, hf_batch
from zppo_jax.processor.chat import UserTurn, render_conversation, render_user_turn
from zppo_jax.processor.config import ProcessorConfig
from zppo_jax.processor.images import image_grid
from zppo_jax.processor.json_files import explained
from zppo_jax.processor.media import Clip, Image, MediaPatches, joined, media_patches, open_video
from zppo_jax.processor.placeholders import Placeholders
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
    byte_values,
)
from zppo_jax.processor.video_files import load_video
from zppo_jax.processor.videos import Video, time_stamps, video_grid
from zppo_jax.types import Features

Sample = tuple[str, Sequence[Image]] | tuple[str, Sequence[Image], Sequence[Video | Clip]]
Grid = tuple[int, int, int]

_BYTE_VALUES = byte_values()
_NEVER_SAMPLED = (IM_START, VISION_START, VISION_END, VISION_PAD, IMAGE_PAD, VIDEO_PAD)


class Processor:
    """Tokenizer, chat template and image preprocessing of one checkpoint.

    Attributes: `stop_ids` end a response (`<|im_end|>` first, then `<|endoftext|>`: the published configs disagree on
    which one it is, so both stop). `banned_ids` must never be sampled: they would open a turn or an image in the
    middle of a response. `vocab_size` is one more than the highest id; a model's embedding may have rows beyond it.
    `response_prefix` is the part of the response that is already in the generation prompt.
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
        self._added_tokens = tokenizer.get_added_tokens_decoder()
        self._placeholders = Placeholders(self._encoder, config.merge_size)
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

        Checkpoints do not say whether to think: `enable_thinking` is True unless overridden. Raises ValueError, in one
        line, for any fault of the files.
        """
        path = Path(directory)
        with explained(path):
            config = dataclasses.replace(preprocessing.read(path), **overrides)
            return cls(files.read_tokenizer(path), files.read_chat_template(path), config, files.read_stop_ids(path))

    def configured(self, **overrides: Any) -> Self:
        """A processor with the same tokenizer and template, and other settings; reads no file again."""
        config = dataclasses.replace(self.config, **overrides)
        return type(self)(self.tokenizer, self.chat_template, config, self.stop_ids)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes the files that `from_directory` and transformers' tokenizer, image and video processors read."""
        files.write(Path(directory), self.tokenizer, self.chat_template, self.config, self.stop_ids)

    def render(self, text: str, num_images: int, num_videos: int = 0) -> str:
        """Renders the prompt as the template writes it, with one placeholder per image or video; for logs."""
        return self._turn(text, num_images, num_videos).full_text

    def features(self, text: str, images: Sequence[Image], videos: Sequence[Video | Clip] = ()) -> Features:
        """Encodes one user turn with the generation prompt: images first, then videos, then the text; or each image and
        video at its IMAGE_MARK or VIDEO_MARK, if the text has as many.

        `images` are RGB uint8 [H, W, 3] or `Picture`s; patches and grids are in the order of the prompt. Nothing is
        decoded before the patches are used, except a `Clip`. `text` can add neither image slots nor turns, whatever it
        spells. Raises ValueError for an invalid image or video, naming its number.
        """
        shown, films = media_patches(images, videos, self.config)
        token_ids_T, kinds = self._token_ids(
            text,
            [one.grids[0] for one in shown],
            [video for one in films for video in one.media if isinstance(video, Video)],
            [one.grids[0] for one in films],
        )
        left = {IMAGE: iter(shown), VIDEO: iter(films)}
        return self._features(token_ids_T, joined((next(left[kind]) for kind in kinds), self.config))

    def chat_features(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Sequence[np.ndarray] = (),
        enable_thinking: bool | None = None,
    ) -> Features:
        """Encodes a conversation with the generation prompt.

        `messages` have transformers' format: {"role": "system", "user" or "assistant", "content": a string or a list of
        {"type": "text", "text"} and {"type": "image"}}, an assistant's optionally with `reasoning_content`; `images`
        are those of all messages in order. `enable_thinking` None means the processor's setting. The texts can add
        neither image slots nor turns, whatever they spell. Raises ValueError for messages that the template refuses and
        for an invalid image, naming its number.
        """
        thinking = self.config.enable_thinking if enable_thinking is None else enable_thinking
        conversation = render_conversation(self.chat_template, messages, enable_thinking=thinking)
        shown, _ = media_patches(images, (), self.config)
        ids = self._encoder.encode(conversation.rendered, conversation.texts)
        filled_T = self._placeholders.fill(ids, [(IMAGE, self._placeholders.image(one.grids[0])) for one in shown])
        return self._features(filled_T, joined(shown, self.config))

    def _features(self, token_ids_T: np.ndarray, patches: MediaPatches) -> Features:
        token_types_T, grid_thw_N3 = self._token_types(token_ids_T), patches.grid_thw_N3
        positions_3T, rope_delta = rope_index(token_types_T, grid_thw_N3, self.config.merge_size)
        return Features(token_ids_T, token_types_T, positions_3T, rope_delta, patches, grid_thw_N3)

    def num_tokens(
        self, text: str, image_sizes: Sequence[tuple[int, int]] = (), videos: Sequence[Video | Clip] = ()
    ) -> int:
        """The number of tokens that `features` would give for a text, images of these (height, width), and videos."""
        images = [image_grid(*size, self.config, f"image {number}") for number, size in enumerate(image_sizes)]
        films = [open_video(video, self.config, f"video {number}") for number, video in enumerate(videos)]
        grids = [video_grid(film, self.config, f"video {number}") for number, film in enumerate(films)]
        return len(self._token_ids(text, images, films, grids)[0])

    def load_video(self, source: bytes | str | os.PathLike[str], name: str = "") -> Video:
        """Loads a video file's frames, chosen and resized for this processor; see `load_video`."""
        return load_video(source, self.config, name)

    def hf_inputs(self, samples: Sequence[Sample], padding_side: PaddingSide = "left") -> dict[str, np.ndarray]:
        """Encodes a padded batch of (text, images) or (text, images, videos), as transformers' processors return it.

        int64 [B, T] `input_ids`, `attention_mask`, `mm_token_type_ids`; with images also `pixel_values` and
        `image_grid_thw`, with videos also `pixel_values_videos` and `video_grid_thw`. Errors name the sample.
        """
        if not samples or padding_side not in ("left", "right"):
            raise ValueError(
                f"{len(samples)} samples, padding_side={padding_side!r}: give samples and 'left' or 'right'"
            )
        rows = []
        for number, sample in enumerate(samples):
            try:
                rows.append(self.features(sample[0], sample[1], sample[2] if len(sample) == 3 else ()))
            except ValueError as error:
                raise ValueError(f"sample {number}: {error}") from error
        return hf_batch(rows, self.pad_id, padding_side)

    def encode_text(self, text: str) -> list[int]:
        """Encodes plain text, without a template; never to the id of a control token."""
        return self._encoder.encode_text(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Decodes sampled ids to text.

        Stop tokens and the other special tokens are dropped, thinking and tool tags kept, as in transformers'
        `skip_special_tokens`. Bytes that are not valid UTF-8 become U+FFFD; ids beyond the vocabulary are dropped.
        """
        kept = [int(token) for token in ids if int(token) not in self.stop_ids]
        return self.tokenizer.decode(kept, skip_special_tokens=True)

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes that a sampled id adds to the text, perhaps a part of a character; empty if `decode` drops
        it.

        Decoded together, with U+FFFD for bytes that are not valid UTF-8, those of all ids are the text of `decode`.
        """
        added = self._added_tokens.get(int(token_id))
        if int(token_id) in self.stop_ids or (added and added.special):
            return b""
        if added:
            return added.content.encode()
        token = self.tokenizer.id_to_token(int(token_id))
        return bytes(_BYTE_VALUES[letter] for letter in token) if token else b""

    def __reduce__(self) -> tuple[Any, ...]:
        # Data workers receive the processor; the tokenizer for user text cannot be pickled (its switch is not
        # serialised).
        return type(self), (self.tokenizer, self.chat_template, self.config, self.stop_ids)

    def _turn(self, text: str, num_images: int, num_videos: int = 0) -> UserTurn:
        thinking = self.config.enable_thinking
        return render_user_turn(self.chat_template, text, num_images, num_videos, enable_thinking=thinking)

    def _token_ids(
        self, text: str, image_grids: Sequence[Grid], videos: Sequence[Video], video_grids: Sequence[Grid]
    ) -> tuple[np.ndarray, list[int]]:
        """The ids [T] of the whole prompt, with placeholders expanded to the grids; and the kinds, in its order."""
        turn = self._turn(text, len(image_grids), len(videos))
        stamped = zip(video_grids, (time_stamps(video, self.config) for video in videos), strict=True)
        left = {
            IMAGE: (self._placeholders.image(grid) for grid in image_grids),
            VIDEO: (self._placeholders.video(grid, stamps) for grid, stamps in stamped),
        }
        kinds = [IMAGE if kind == "image" else VIDEO for kind in turn.kinds]
        fillings = [(kind, next(left[kind])) for kind in kinds]
        return self._placeholders.fill(self._encoder.encode(turn.rendered, turn.texts), fillings), kinds

    def _token_types(self, token_ids_T: np.ndarray) -> np.ndarray:
        is_image_T = token_ids_T == self.image_token_id
        is_video_T = token_ids_T == self.video_token_id
        return (IMAGE * is_image_T + VIDEO * is_video_T).astype(np.int32)

    def _check_generation_prompt(self) -> None:
        """Raises ValueError if the template ignores `enable_thinking`: it would train on the wrong prompt."""
        rendered = self._turn("x", 0).rendered
        expected = "<|im_start|>assistant\n<think>\n" + ("" if self.config.enable_thinking else "\n</think>\n\n")
        if not rendered.endswith(expected):
            raise ValueError(
                f"with enable_thinking={self.config.enable_thinking} the chat template ends its prompt with "
                f"{rendered[-60:]!r}, not {expected!r}: use the chat_template.jinja of a Qwen3.5 checkpoint"
            )
