"""Reads and writes a checkpoint's preprocessor files for images and videos, in transformers' layout.

As in transformers, a nested processor_config.json takes precedence over the older files, one for each processor.
"""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

from zppo_jax.processor.config import ProcessorConfig
from zppo_jax.processor.json_files import object_of, read_object

_BICUBIC = 3
_FRAME_TOKENS = 768  # transformers' default of max_video_tokens
_PATCHING = ("patch_size", "temporal_patch_size", "merge_size")
_FIXED: dict[str, Any] = {
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "resample": _BICUBIC,
}
_SAMPLING = {"do_sample_frames": True, "num_frames": None}
_SIZES = ({"shortest_edge", "longest_edge"}, {"min_pixels", "max_pixels"})
"""Both spellings of the bounds on an image's pixels; transformers has others, which mean another kind of resizing."""

IMAGE_FILE, VIDEO_FILE, NESTED_FILE = (
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)


def read(directory: Path) -> ProcessorConfig:
    """Reads the patching and the pixel bounds of images and videos.

    Without a video processor the published values hold. Raises ValueError, naming the file, for a preprocessing that
    this package does not support and for invalid values.
    """
    image_path, image = _content(directory, "image_processor", IMAGE_FILE)
    video_path, video = _content(directory, "video_processor", VIDEO_FILE)
    if not image:
        raise ValueError(f"{directory} holds no {IMAGE_FILE}: copy it there from the checkpoint's repository")
    _check(image, _FIXED, image_path)
    patching = {name: getattr(ProcessorConfig, name) for name in _PATCHING} | _given(image, *_PATCHING)
    _check(video, _FIXED | _SAMPLING | patching, video_path)
    low, high = _pixels(image, image_path, _given(image, "min_pixels", "max_pixels"))
    video_low, video_high = _pixels(video, video_path, {})
    values = {
        "min_pixels": low,
        "max_pixels": high,
        "video_min_pixels": video_low,
        "video_max_pixels": video_high,
        "video_fps": video.get("fps"),
        "video_min_frames": video.get("min_frames"),
        "video_max_frames": video.get("max_frames"),
        "video_frame_tokens": video.get("max_video_tokens", _FRAME_TOKENS) if _capped(video, video_path) else None,
    }
    try:
        return ProcessorConfig(**patching | {name: value for name, value in values.items() if value is not None})
    except ValueError as error:
        raise ValueError(f"{image_path.parent}: in its preprocessor files {error}") from error


def contents(config: ProcessorConfig) -> dict[str, dict[str, Any]]:
    """The files, by name, that `read` and transformers read back to the same processors."""
    fixed = {"processor_class": "Qwen3VLProcessor", "do_convert_rgb": True, "rescale_factor": 1 / 255}
    common = fixed | _FIXED | {name: getattr(config, name) for name in _PATCHING}
    image = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels},
    }
    video = {
        "video_processor_type": "Qwen3VLVideoProcessor",
        "size": {"shortest_edge": config.video_min_pixels, "longest_edge": config.video_max_pixels},
        "do_sample_frames": True,
        "fps": config.video_fps,
        "min_frames": config.video_min_frames,
        "max_frames": config.video_max_frames,
        "cap_pixels_per_frame": config.video_frame_tokens is not None,
        "max_video_tokens": config.video_frame_tokens or _FRAME_TOKENS,
    }
    return {IMAGE_FILE: common | image, VIDEO_FILE: common | video}


def _content(directory: Path, nested: str, name: str) -> tuple[Path, dict[str, Any]]:
    """The file with the settings of one processor, and the settings."""
    path = directory / NESTED_FILE
    content = object_of(read_object(path), nested, path)
    return (path, content) if content else (directory / name, read_object(directory / name))


def _given(content: dict[str, Any], *names: str) -> dict[str, Any]:
    """The values of these keys, without those that are absent or null."""
    return {name: content[name] for name in names if content.get(name) is not None}


def _pixels(content: dict[str, Any], path: Path, given: dict[str, Any]) -> tuple[Any, Any]:
    """The least and the most pixels; (None, None) if the file does not give them.

    `given` are transformers' older keys next to `size`; they take precedence, as there.
    """
    size = content.get("size", {}) if content.get("size") is not None else {}
    spoken = _given(size, *size) if isinstance(size, dict) else None
    if spoken is None or not any(spoken.keys() <= names for names in _SIZES):
        raise ValueError(
            f"{path}: size is {reprlib.repr(size)}, but it can only be {{shortest_edge, longest_edge}} or "
            "{min_pixels, max_pixels}, which are numbers of pixels"
        )
    low = given.get("min_pixels", spoken.get("shortest_edge", spoken.get("min_pixels")))
    high = given.get("max_pixels", spoken.get("longest_edge", spoken.get("max_pixels")))
    if (low is None) != (high is None):
        raise ValueError(f"{path}: of the fewest and the most pixels it gives one only ({low or high}): give both")
    return low, high


def _capped(video: dict[str, Any], path: Path) -> bool:
    capped = video.get("cap_pixels_per_frame")
    if capped is not None and not isinstance(capped, bool):
        raise ValueError(f"{path}: cap_pixels_per_frame is {reprlib.repr(capped)}, not true or false")
    return bool(capped)


def _check(content: dict[str, Any], expected: dict[str, Any], path: Path) -> None:
    """Raises ValueError for a preprocessing that is not Qwen3.5's; a file may omit a key."""
    for name, value in expected.items():
        found = content.get(name)
        if found is not None and found != value:
            kind = content.get("video_processor_type") or content.get("image_processor_type") or "preprocessor"
            what = f"{name} is {reprlib.repr(found)} in the config of {str(kind)[:50]}"
            raise ValueError(f"{path}: {what}, but only {value} is supported")
    factor = content.get("rescale_factor", 1 / 255)
    if factor is not None and not (isinstance(factor, int | float) and abs(factor * 255 - 1) <= 1e-3):
        raise ValueError(f"{path}: rescale_factor is {reprlib.repr(factor)}, Qwen3.5 has 1/255")
