"""Settings of the processor: how images and videos become patches, and whether the model thinks."""

from __future__ import annotations

import dataclasses
import reprlib

# The largest value of each field. A larger value in a file is a mistake, or an attack on the memory: an image is
# enlarged to `min_pixels`. The upper bounds on pixels can only shrink an image, so there a file may mean "no limit".
_LARGEST = {
    "patch_size": 256,
    "temporal_patch_size": 8,
    "merge_size": 16,
    "min_pixels": 2**24,
    "max_pixels": 2**40,
    "video_min_pixels": 2**26,
    "video_max_pixels": 2**40,
    "video_fps": 1000,
    "video_min_frames": 2**16,
    "video_max_frames": 2**20,
    "video_frame_tokens": 2**20,
}
_LARGEST_FACTOR = 1024
_RANGES = (
    ("min_pixels", "max_pixels"),
    ("video_min_pixels", "video_max_pixels"),
    ("video_min_frames", "video_max_frames"),
)


@dataclasses.dataclass(frozen=True)
class ProcessorConfig:
    """The settings by which images and videos become patches, and whether the model thinks.

    The defaults are those of the published checkpoints. `min_pixels` and `max_pixels` bound an image's height x width
    after resizing; one token represents `merge_size` x `merge_size` patches. `video_min_pixels` and
    `video_max_pixels` bound frames x height x width. `video_fps` frames per second are taken from a video file, at
    least `video_min_frames` and at most `video_max_frames`. `video_frame_tokens` caps the tokens of one frame
    (transformers' cap_pixels_per_frame, off by default).
    """

    patch_size: int = 16
    temporal_patch_size: int = 2
    merge_size: int = 2
    min_pixels: int = 65_536
    max_pixels: int = 16_777_216
    enable_thinking: bool = True
    video_min_pixels: int = 4_096
    video_max_pixels: int = 25_165_824
    video_fps: float = 2.0
    video_min_frames: int = 4
    video_max_frames: int = 768
    video_frame_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, largest in _LARGEST.items():
            if name != "video_frame_tokens" or self.video_frame_tokens is not None:
                _check(name, getattr(self, name), largest)
        if self.factor > _LARGEST_FACTOR:
            raise ValueError(f"patch_size x merge_size = {self.factor} must be at most {_LARGEST_FACTOR}")
        for low, high in _RANGES:
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low}={getattr(self, low)} exceeds {high}={getattr(self, high)}")

    @property
    def factor(self) -> int:
        """The side of one image token in pixels; resized sides are multiples of it."""
        return self.patch_size * self.merge_size

    @property
    def patch_width(self) -> int:
        """The number of values in one patch: colours x frames x height x width."""
        return 3 * self.temporal_patch_size * self.patch_size**2


def _check(name: str, value: object, largest: int) -> None:
    kinds = (int, float) if name == "video_fps" else (int,)
    if not isinstance(value, kinds) or isinstance(value, bool) or not 0 < value <= largest:
        number = "number" if float in kinds else "whole number"
        raise ValueError(f"{name}={reprlib.repr(value)} must be a positive {number} of at most {largest:,}")
