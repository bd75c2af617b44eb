"""Images: decoding of files, and the patches that Qwen3.5's vision tower reads.

Shape suffixes: H, W pixels; C colours (3) in images and values of one patch in patches; I patches; N images.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

_MAX_ASPECT_RATIO = 200


@dataclasses.dataclass(frozen=True)
class ProcessorConfig:
    """How images become patches, and whether the model is to think.

    `min_pixels` and `max_pixels` bound height x width after resizing; the defaults are those of the published
    checkpoints. One image token stands for `merge_size` x `merge_size` patches.
    """

    patch_size: int = 16
    temporal_patch_size: int = 2
    merge_size: int = 2
    min_pixels: int = 65_536
    max_pixels: int = 16_777_216
    enable_thinking: bool = True

    def __post_init__(self) -> None:
        for name in ("patch_size", "temporal_patch_size", "merge_size", "min_pixels", "max_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels={self.min_pixels} exceeds max_pixels={self.max_pixels}")

    @property
    def factor(self) -> int:
        """Side of one image token in pixels; resized sides are multiples of it."""
        return self.patch_size * self.merge_size

    @property
    def patch_width(self) -> int:
        """Values of one patch: colours x frames x height x width."""
        return 3 * self.temporal_patch_size * self.patch_size**2


def load_image(source: bytes | str | os.PathLike[str], name: str = "") -> np.ndarray:
    """Decodes an image file (path or content) to RGB uint8 [H, W, 3].

    Cameras' rotation is applied, transparency laid on white, 16-bit grey scaled to 8 bits, other modes converted by
    Pillow; of several frames the first is taken. `name` says in errors which sample it was. Raises ValueError.
    """
    label = name or ("image bytes" if isinstance(source, bytes) else str(source))
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except FileNotFoundError as error:
        raise ValueError(f"{label}: no such file") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{label}: not an image in a format that Pillow reads (convert it to PNG or JPEG)") from error
    except Exception as error:  # on damaged files Pillow's decoders raise many kinds
        raise ValueError(f"{label}: cannot be decoded: {error}") from error


def check_image(image_HWC: np.ndarray, name: str = "image") -> None:
    """Raises ValueError unless the image is an RGB uint8 array of shape [H, W, 3] that can be resized."""
    if not isinstance(image_HWC, np.ndarray):
        raise ValueError(f"{name}: expected a NumPy array, got {type(image_HWC).__name__} (load_image reads files)")
    if image_HWC.dtype != np.uint8:
        raise ValueError(f"{name}: expected uint8 values 0..255, got {image_HWC.dtype}; scale and convert them first")
    if image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or 0 in image_HWC.shape:
        raise ValueError(f"{name}: expected the shape [height, width, 3], got {list(image_HWC.shape)}")
    ratio = max(image_HWC.shape[:2]) / min(image_HWC.shape[:2])
    if ratio > _MAX_ASPECT_RATIO:
        raise ValueError(f"{name}: aspect ratio {ratio:.0f} exceeds {_MAX_ASPECT_RATIO}: crop the image")


def smart_resize(height: int, width: int, config: ProcessorConfig) -> tuple[int, int]:
    """The size, in pixels, to which an image is resized.

    Sides are multiples of `config.factor`, the area lies within the bounds where that is possible, and the aspect
    ratio is kept as well as these allow. Rounds half to even, as transformers does.
    """
    factor = config.factor
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > config.max_pixels:
        shrink = math.sqrt(height * width / config.max_pixels)
        new_height = max(1, math.floor(height / shrink / factor)) * factor
        new_width = max(1, math.floor(width / shrink / factor)) * factor
    elif new_height * new_width < config.min_pixels:
        grow = math.sqrt(config.min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def patchify(images: Sequence[np.ndarray], config: ProcessorConfig) -> tuple[np.ndarray, np.ndarray]:
    """Patches of all images and their grids.

    Returns patches [I, colours * frames * patch * patch] float32 in [-1, 1], the patches of a merged block side by
    side, and grids [N, 3] int32 (time, height, width) in patches. An image is repeated to fill the frames of a patch.
    """
    parts = [np.zeros((0, config.patch_width), np.float32)]
    grids = []
    for number, image_HWC in enumerate(images):
        check_image(image_HWC, f"image {number}")
        resized_HWC = _resize(image_HWC, config)
        parts.append(_blocks(resized_HWC, config))
        grids.append((1, resized_HWC.shape[0] // config.patch_size, resized_HWC.shape[1] // config.patch_size))
    return np.concatenate(parts), np.asarray(grids, np.int32).reshape(-1, 3)


def _resize(image_HWC: np.ndarray, config: ProcessorConfig) -> np.ndarray:
    height, width = smart_resize(image_HWC.shape[0], image_HWC.shape[1], config)
    if (height, width) == image_HWC.shape[:2]:
        return image_HWC
    return np.asarray(Image.fromarray(image_HWC).resize((width, height), Image.Resampling.BICUBIC))


def _blocks(image_HWC: np.ndarray, config: ProcessorConfig) -> np.ndarray:
    """Patches [I, C] of a resized image, normalised with mean and deviation 0.5."""
    patch, merge, frames = config.patch_size, config.merge_size, config.temporal_patch_size
    height, width, colours = image_HWC.shape
    pixels = image_HWC.astype(np.float32) / 127.5 - 1.0
    split = pixels.reshape(height // config.factor, merge, patch, width // config.factor, merge, patch, colours)
    ordered = split.transpose(0, 3, 1, 4, 6, 2, 5)[:, :, :, :, :, None]
    return np.repeat(ordered, frames, axis=5).reshape(-1, config.patch_width)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range: scale them to 0..255 and save as PNG")
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Pillow itself would clip 16-bit grey at 255, that is to white."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65_535:
        raise ValueError(f"grey values {values.min()}..{values.max()} are not 16-bit: save it with 8 or 16 bits")
    return Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert("RGB")
