"""Images of requests: data URIs, looked at before they are decoded."""

from __future__ import annotations

import base64
import binascii
import io
import re

import numpy as np
from PIL import Image

from zppo_jax.processor import load_image
from zppo_jax.serve.errors import ApiError

_DATA_URI = re.compile(r"data:image/[a-z0-9.+-]+(?:;[a-z0-9=._-]+)*;base64,", re.IGNORECASE)


def content_of(uri: str, name: str) -> bytes:
    """The file in a data URI. Raises ApiError."""
    match = _DATA_URI.match(uri)
    if match is None:
        raise ApiError(
            f"{name}: give a data URI (data:image/png;base64,...); this server fetches no addresses", param="messages"
        )
    try:
        return base64.b64decode(uri[match.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(f"{name}: not base64 ({error})", param="messages") from error


def decode(content: bytes, name: str, max_pixels: int) -> np.ndarray:
    """RGB uint8 [H, W, 3]; an image of more than `max_pixels` is refused by its header. Raises ApiError."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
    except Exception as error:  # on damaged files Pillow raises many kinds
        raise ApiError(f"{name}: not an image, or an empty or damaged one", param="messages") from error
    if width * height > max_pixels:
        raise ApiError(
            f"{name}: {width} x {height} pixels exceed the limit of {max_pixels} (--max_image_pixels): shrink it",
            param="messages",
        )
    try:
        return load_image(content, name)
    except ValueError as error:
        raise ApiError(str(error), param="messages") from error
