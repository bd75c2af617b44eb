"""Images: decoding of files, and sizes.

Shape suffixes: F frames; H, W pixels; C colours (3).
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from zppo_jax.processor.config import ProcessorConfig
from zppo_jax.processor.patches import check_aspect, resize

# Not every format that Pillow decodes: for an EPS file, for example, it would start Ghostscript.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "AVIF", "JPEG2000")


def load_image(source: bytes | str | os.PathLike[str], name: str = "") -> np.ndarray:
    """Decodes an image file (path or content) to RGB uint8 [H, W, 3].

    As in transformers, the camera's rotation (EXIF) is applied, the first of several frames is taken, and Pillow
    converts other modes (CMYK, palette, grey). Three deviations: transparency is laid on white, where `convert("RGB")`
    would show the colours hidden under it; 16-bit grey is scaled to 8 bits, where Pillow would clip it to white; an
    image of more than PIL.Image.MAX_IMAGE_PIXELS pixels is refused before it is decoded, where Pillow only warns.
    `name` is the sample's name in errors. Raises ValueError.
    """
    with _opened(source, name) as image:
        return np.asarray(_to_rgb(_turned(image)))


def check_image(source: bytes | str | os.PathLike[str], name: str = "") -> None:
    """Raises ValueError, like `load_image`, for an image that cannot be decoded; quicker, since a JPEG is decoded to an
    eighth of its size: that reads the whole file too."""
    with _opened(source, name) as image:
        image.draft("RGB", (1, 1))
        image.load()
        if image.mode.startswith(("F", "I")):  # others than 8 bits may hold values that have no grey level
            _to_rgb(image)


def _turned(image: Image.Image) -> Image.Image:
    """The image without the camera's rotation (EXIF); itself if there is none."""
    return image if image.getexif().get(ExifTags.Base.Orientation, 1) == 1 else ImageOps.exif_transpose(image)


@contextlib.contextmanager
def _opened(source: bytes | str | os.PathLike[str], name: str) -> Iterator[Image.Image]:
    """Opens an image file and checks its head; what fails within the block is a ValueError too."""
    label = name or ("image bytes" if isinstance(source, bytes) else str(source))
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            _check_header(image)
            yield image
    except FileNotFoundError as error:
        raise ValueError(f"{label}: no such file") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{label}: not an image, or an empty or damaged one (convert it to PNG or JPEG)") from error
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        raise ValueError(f"{label}: cannot be decoded: {error}") from error


def image_size(source: bytes | str | os.PathLike[str], name: str = "") -> tuple[int, int]:
    """The (height, width) of the pixels that `load_image` would give, from the head of the file; raises ValueError like
    it."""
    with _opened(source, name) as image:
        width, height = image.size
        turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        return (width, height) if turned else (height, width)


def smart_resize(height: int, width: int, config: ProcessorConfig, name: str = "image") -> tuple[int, int]:
    """The size, in pixels, to which an image is resized.

    Sides are multiples of `config.factor`, the area is within the bounds if possible, and the aspect ratio is kept as
    far as these allow. Rounds half to even, as transformers does. Raises ValueError for an image that is too long and
    narrow.
    """
    check_aspect(height, width, name)
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


def image_grid(height: int, width: int, config: ProcessorConfig, name: str = "image") -> tuple[int, int, int]:
    """The grid of an image of this size in pixels: (time, height, width) in patches."""
    new_height, new_width = smart_resize(height, width, config, name)
    return 1, new_height // config.patch_size, new_width // config.patch_size


def image_tensor(image_HWC: np.ndarray, height: int, width: int, num_frames: int) -> np.ndarray:
    """The image at the size of its grid, repeated to fill the frames of one step of time, uint8 [F, H, W, 3]."""
    resized_HWC = resize(image_HWC, height, width)
    return np.broadcast_to(resized_HWC, (num_frames, *resized_HWC.shape))


def _check_header(image: Image.Image) -> None:
    """Checks the size before anything is decoded, since a small file may unpack to gigabytes."""
    if image.format not in _FORMATS:
        raise ValueError(f"the format {image.format} is none of {', '.join(_FORMATS)}: convert it")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ValueError(f"{image.width} x {image.height} pixels exceed the limit of {limit}: shrink the image")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range: scale them to 0..255 and save as PNG")
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Scales 16-bit grey to 8 bits: Pillow itself would clip it at 255, which is white."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65_535:
        raise ValueError(f"grey values {values.min()}..{values.max()} are not 16-bit: save it with 8 or 16 bits")
    return Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert("RGB")
