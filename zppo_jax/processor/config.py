"""What the processor is told: how images and videos become patches, and whether the model is to think."""

from __future__ import annotations

import dataclasses

_POSITIVE = (
    "patch_size",
    "temporal_patch_size",
    "merge_size",
    "min_pixels",
    "max_pixels",
    "video_min_pixels",
    "video_max_pixels",
    "video_fps",
    "video_min_frames",
    "video_max_frames",
)
_RANGES = (
    ("min_pixels", "max_pixels"),
    ("video_min_pixels", "video_max_pixels"),
    ("video_min_frames", "video_max_frames"),
)


@dataclasses.dataclass(frozen=True)
class ProcessorConfig:
    """How images and videos become patches, and whether the model is to think.

    The defaults are those of the published checkpoints. `min_pixels` and `max_pixels` bound an image's height x width
    after resizing; one token stands for `merge_size` x `merge_size` patches. `video_min_pixels` and
    `video_max_pixels` bound frames x height x width. Of a video file `video_fps` frames a second are taken, at least
    `video_min_frames` and at most `video_max_frames`. `video_frame_tokens` caps the tokens of one frame
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
        for name in _POSITIVE:
            value = getattr(self, name)
            if not (isinstance(value, int | float) and value > 0):
                raise ValueError(f"{name}={value!r} must be a positive number")
        for low, high in _RANGES:
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low}={getattr(self, low)} exceeds {high}={getattr(self, high)}")
        if self.video_frame_tokens is not None and self.video_frame_tokens < 1:
            raise ValueError(f"video_frame_tokens={self.video_frame_tokens} must be at least 1, or None for no cap")

    @property
    def factor(self) -> int:
        """Side of one image token in pixels; resized sides are multiples of it."""
        return self.patch_size * self.merge_size

    @property
    def patch_width(self) -> int:
        """Values of one patch: colours x frames x height x width."""
        return 3 * self.temporal_patch_size * self.patch_size**2
