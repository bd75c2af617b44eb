"""A prompt as a user turn of a chat completion: images, and frames of videos, as data URIs.

Their pixels are those of the student's patches, at the size that its processor shows: a server whose limits on pixels
are no narrower resizes nothing. Shape suffixes: F frames; H, W pixels; C colours.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from zppo_jax.processor import ProcessorConfig
from zppo_jax.processor.chat import turn_content
from zppo_jax.processor.media import MediaPatches, media_patches
from zppo_jax.processor.videos import Video
from zppo_jax.types import IMAGE_MARK, VIDEO_MARK, Prompt
from zppo_jax.zppo.prompts import UNMARKED

_MARKS = re.compile(f"{IMAGE_MARK}|{VIDEO_MARK}")
_TOKEN = re.compile(r"<\|(\w+)\|>")
_COMPRESSION = 1  # zlib's fastest: a tenth larger than its best, in a tenth of the time

Content = str | list[dict[str, Any]]
"""The content of a message: a text, or parts in OpenAI's format."""


def text_content(text: str) -> str:
    """The text as a server may read it: without marks of images and videos, and with a space in every `<|token|>`,
    which a server's tokenizer would take for the token (ours does not)."""
    return _TOKEN.sub(r"<| \1 |>", _MARKS.sub("", text).translate(UNMARKED))


def prompt_content(prompt: Prompt, config: ProcessorConfig) -> Content:
    """The content of the prompt's user turn, with images and videos before the text or at its marks.

    A video is its frames as images, each after the text `<1.5 seconds>` that says when it was taken: the servers' own
    video inputs differ in the frames that they choose. Raises ValueError for a file that is damaged.
    """
    question = prompt.question
    images, videos = media_patches(question.images, question.videos, config)
    if not images and not videos:
        return text_content(prompt.text)
    shown = {"image": map(_image, images), "video": map(_video, videos)}
    parts: list[dict[str, Any]] = []
    for part in turn_content(prompt.text, len(images), len(videos)):
        parts += [_text(text_content(part["text"]))] if part["type"] == "text" else next(shown[part["type"]])
    return parts


def _image(patches: MediaPatches) -> list[dict[str, Any]]:
    return [_picture(patches.pixels()[0][0])]


def _video(patches: MediaPatches) -> list[dict[str, Any]]:
    (video,), (frames_FHWC,) = patches.media, patches.pixels()
    assert isinstance(video, Video)
    return [
        part
        for index, frame in zip(video.frame_indices(), frames_FHWC, strict=False)
        for part in _frame(index / video.fps, frame)
    ]


def _frame(seconds: float, frame_HWC: np.ndarray) -> Iterator[dict[str, Any]]:
    yield _text(f"<{seconds:.1f} seconds>")
    yield _picture(frame_HWC)


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _picture(pixels_HWC: np.ndarray) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(pixels_HWC).save(file, "PNG", compress_level=_COMPRESSION)
    uri = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": uri}}
