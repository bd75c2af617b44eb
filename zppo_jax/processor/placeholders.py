"""Placeholders: the template writes one token for an image or a video, the model reads one for each merged block.

Shape suffixes: N images and videos; 3 is (time, height, width).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from zppo_jax.processor.positions import IMAGE, VIDEO
from zppo_jax.processor.tokenizer import IMAGE_PAD, VIDEO_PAD, VISION_END, VISION_START, PromptEncoder


@dataclasses.dataclass(frozen=True)
class Placeholders:
    """Expands placeholders, in transformers' layout.

    An image is a run of its pad token. A video is, for each step of time, the time stamp as ordinary text and a run
    of its pad token between marks; the template's marks around the whole stay.
    """

    encoder: PromptEncoder
    merge_size: int

    def image(self, grid_thw: Sequence[int]) -> list[int]:
        """The ids of one image with this grid in patches."""
        return [self._id(IMAGE_PAD)] * self._num_tokens(grid_thw)

    def video(self, grid_thw: Sequence[int], time_stamps: Sequence[str]) -> list[int]:
        """The ids of one video with this grid in patches and a time stamp for each step of time."""
        pads = [self._id(VIDEO_PAD)] * self._num_tokens(grid_thw[1:])
        step = [self._id(VISION_START), *pads, self._id(VISION_END)]
        return [token for stamp in time_stamps for token in (*self.encoder.encode_text(stamp), *step)]

    def fill(self, ids: Sequence[int], fillings: Sequence[tuple[int, list[int]]]) -> np.ndarray:
        """Replaces each placeholder in `ids` by the ids of the next image or video; returns int32 token ids.

        `fillings` are (IMAGE or VIDEO, ids). Raises ValueError unless the placeholders are of these kinds, in order.
        """
        kinds = {self._id(IMAGE_PAD): IMAGE, self._id(VIDEO_PAD): VIDEO}
        found, given = [kinds[token] for token in ids if token in kinds], [kind for kind, _ in fillings]
        if found != given:
            raise ValueError(
                f"the chat template made {found.count(IMAGE)} image slots and {found.count(VIDEO)} video slots for "
                f"{given.count(IMAGE)} images and {given.count(VIDEO)} videos, or in another order: use the "
                "chat_template.jinja of a Qwen3.5 checkpoint"
            )
        left = iter(fillings)
        filled: list[int] = []
        for token in ids:
            filled.extend(next(left)[1] if token in kinds else (token,))
        return np.asarray(filled, np.int32)

    def _num_tokens(self, grid_thw: Sequence[int]) -> int:
        return int(np.prod(grid_thw)) // self.merge_size**2

    def _id(self, token: str) -> int:
        return self.encoder.control_ids[token]
