"""Videos: the choice of frames, their size and time stamps, as in transformers' Qwen3-VL.

Shape suffixes: F frames; H, W pixels; C colours (3).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from zppo_jax.processor.config import ProcessorConfig
from zppo_jax.processor.patches import check_aspect, check_pixels, resize_frame


@dataclasses.dataclass(frozen=True, eq=False)
class Video:
    """Frames of a video that were already chosen, and when each was taken.

    `frames` are RGB uint8 [H, W, 3] of one size. `indices` are their ascending numbers in the source and `fps` is
    the source's rate, so a frame was taken at index / fps seconds; without `indices` the frames are the whole source.
    (For time stamps in seconds, give these as `indices` and fps=1.) `sample_indices` chooses as transformers does.
    `source_size` is the (height, width) before a resizing that was already done; `load_video` sets it.
    """

    frames: Sequence[np.ndarray]
    fps: float
    indices: Sequence[float] | None = None
    source_size: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """The (height, width) from which the size for the model is computed."""
        return self.source_size or (self.frames[0].shape[0], self.frames[0].shape[1])

    def frame_indices(self) -> list[float]:
        return list(range(len(self.frames))) if self.indices is None else [float(index) for index in self.indices]


def sample_indices(total_frames: int, fps: float, config: ProcessorConfig) -> np.ndarray:
    """The numbers of the frames to take from `total_frames` at `fps` per second, int64 [F], evenly spread."""
    wanted = int(total_frames / fps * config.video_fps)
    count = min(max(wanted, config.video_min_frames), config.video_max_frames, total_frames)
    return np.linspace(0, total_frames - 1, count).round().astype(np.int64)


def smart_resize_video(
    num_frames: int, height: int, width: int, config: ProcessorConfig, name: str = "video"
) -> tuple[int, int]:
    """The size, in pixels, to which the frames of a video are resized; the pixel bounds hold for all frames together.

    Follows transformers to the letter, its truncations and its rounding of odd frame counts included. Raises
    ValueError for too few frames or frames that are too long and narrow.
    """
    factor, temporal = config.factor, config.temporal_patch_size
    if num_frames < temporal:
        raise ValueError(f"{name}: {num_frames} frames, but a video has at least {temporal}: give a still as an image")
    max_pixels = _max_pixels(num_frames, config)
    if min(height, width) < factor:
        enlarge = max(factor / height, factor / width)
        height, width = int(height * enlarge), int(width * enlarge)
    check_aspect(height, width, name)
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    volume = round(num_frames / temporal) * temporal * new_height * new_width
    if volume > max_pixels:
        shrink = math.sqrt(num_frames * height * width / max_pixels)
        new_height = max(1, math.floor(height / shrink / factor)) * factor
        new_width = max(1, math.floor(width / shrink / factor)) * factor
    elif volume < config.video_min_pixels:
        grow = math.sqrt(config.video_min_pixels / (num_frames * height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def video_grid(video: Video, config: ProcessorConfig, name: str = "video") -> tuple[int, int, int]:
    """The grid (time, height, width) in patches of a video; computed from sizes alone."""
    height, width = smart_resize_video(len(video.frames), *video.size, config, name)
    steps = math.ceil(len(video.frames) / config.temporal_patch_size)
    return steps, height // config.patch_size, width // config.patch_size


def video_tensor(frames: Sequence[np.ndarray], height: int, width: int, temporal: int) -> np.ndarray:
    """The frames at the size of their grid, uint8 [F, H, W, 3]. `temporal` frames make one step of time; the last frame
    is repeated to fill the last step."""
    resized = [resize_frame(frame_HWC, height, width) for frame_HWC in frames]
    return np.stack(resized + resized[-1:] * (-len(resized) % temporal))


def time_stamps(video: Video, config: ProcessorConfig) -> list[str]:
    """The text before each step of time in the prompt: the mean time of the step's first and last frame, in seconds."""
    temporal = config.temporal_patch_size
    indices = video.frame_indices()
    indices += indices[-1:] * (-len(indices) % temporal)
    seconds = [index / video.fps for index in indices]
    means = [(seconds[start] + seconds[start + temporal - 1]) / 2 for start in range(0, len(seconds), temporal)]
    return [f"<{mean:.1f} seconds>" for mean in means]


def check_video(video: Video, config: ProcessorConfig, name: str) -> None:
    """Raises ValueError unless the frames are images of one size, not too many, with ascending time stamps."""
    if not isinstance(video, Video):
        raise ValueError(f"{name}: expected a Video, got {type(video).__name__} (load_video reads files)")
    if not 0 < len(video.frames) <= config.video_max_frames:
        raise ValueError(
            f"{name}: {len(video.frames)} frames, expected 1 to {config.video_max_frames} "
            "(sample_indices chooses from more)"
        )
    for number, frame_HWC in enumerate(video.frames):
        check_pixels(frame_HWC, f"{name}, frame {number}")
        if frame_HWC.shape != video.frames[0].shape:
            raise ValueError(
                f"{name}: frame {number} has the shape {list(frame_HWC.shape)}, frame 0 "
                f"{list(video.frames[0].shape)}: bring all frames to one size"
            )
    if not (math.isfinite(video.fps) and video.fps > 0):
        raise ValueError(f"{name}: fps={video.fps} must be a positive number")
    indices_F = np.asarray(video.frame_indices())
    if len(indices_F) != len(video.frames):
        raise ValueError(f"{name}: {len(indices_F)} indices for {len(video.frames)} frames")
    if not np.isfinite(indices_F).all() or indices_F[0] < 0 or (np.diff(indices_F) < 0).any():
        raise ValueError(f"{name}: the indices of the frames must be finite, not negative and ascending")


def _max_pixels(num_frames: int, config: ProcessorConfig) -> int:
    if config.video_frame_tokens is None:
        return config.video_max_pixels
    most = min(config.video_frame_tokens * config.factor**2, config.video_max_pixels // num_frames)
    return max(most, int(config.video_min_pixels * 1.05)) * num_frames
