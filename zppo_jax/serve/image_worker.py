"""The child process that decodes images: `python -m zppo_jax.serve.image_worker`.

A request is a JSON line ({"size", "name", "max_pixels"}) and `size` bytes of a file; the reply is a JSON line, either
{"error"} or {"height", "width"} and the RGB bytes. The kernel limits memory and the processor time of an image; the
parent limits the wall clock.
"""

from __future__ import annotations

import io
import json
import os
import sys
from typing import BinaryIO

import numpy as np
from PIL import Image

from zppo_jax.children import limit_memory, limit_processor, replies
from zppo_jax.processor import load_image

_NICENESS = 10
"""Niceness of the children: they get a tenth of a core that the model uses too, so that images do not slow answers."""


def decode(content: bytes, name: str, max_pixels: int) -> np.ndarray:
    """Decodes to RGB uint8 [H, W, 3]; refuses more than `max_pixels` by the header. Raises ValueError."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise ValueError(f"{name}: not an image, or an empty or damaged one (convert it to PNG or JPEG)") from error
    if width * height > max_pixels:
        raise ValueError(f"{name}: {width} x {height} pixels exceed the limit of {max_pixels}: shrink the image")
    return load_image(content, name)


def answer(request: bytes, requests: BinaryIO, to_parent: BinaryIO) -> None:
    """Answers one request, whose line has been read."""
    head = json.loads(request)
    content = requests.read(head["size"])
    try:
        image_HWC = decode(content, head["name"], head["max_pixels"])
    except (ValueError, MemoryError) as error:
        message = str(error) or f"{head['name']}: needs too much memory"
        to_parent.write(json.dumps({"error": message}).encode() + b"\n")
    else:
        height, width, _ = image_HWC.shape
        to_parent.write(json.dumps({"height": height, "width": width}).encode() + b"\n")
        to_parent.write(image_HWC.tobytes())
    to_parent.flush()


def main() -> None:
    limit_memory(int(sys.argv[1]))
    os.nice(_NICENESS)
    to_parent = replies()
    for request in sys.stdin.buffer:
        limit_processor(float(sys.argv[2]))
        answer(request, sys.stdin.buffer, to_parent)


if __name__ == "__main__":
    main()
