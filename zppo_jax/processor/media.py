"""Image and video files that are decoded when they are used, and the patches of a prompt's images and videos.

A step holds hundreds of questions. As float32 patches, 480 images of 1.3 million pixels are 15 GB; as patches in uint8
they are 3.8, as pixels 1.9, and as files 0.1. So a question keeps its files until its pixels are used, and its pixels,
at the model's size, from then on.

Shape suffixes: F frames; H, W pixels; C colours (3) in frames and values of one patch in patches; I patches.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from zppo_jax.processor.config import ProcessorConfig
from zppo_jax.processor.images import check_image, image_grid, image_size, image_tensor, load_image
from zppo_jax.processor.patches import check_pixels, resize, to_patches
from zppo_jax.processor.video_files import load_video
from zppo_jax.processor.videos import Video, check_video, video_grid, video_tensor
from zppo_jax.types import Features

_THREADS = 8
"""Pillow and FFmpeg decode and resize without the interpreter's lock."""


class Picture:
    """An image file, decoded when its pixels are used. Once resized for the model, the pixels are kept, as uint8.

    `content` is the file, `name` its name in errors. Any thread may use it; a copy in another process decodes again.
    """

    def __init__(self, content: bytes, name: str = "image"):
        self.content = content
        self.name = name
        self._size: tuple[int, int] | None = None
        self._resized: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape [H, W, 3] of its pixels, from the head of the file. Raises ValueError if it is not an image."""
        if self._size is None:
            self._size = image_size(self.content, self.name)
        return (*self._size, 3)

    @property
    def nbytes(self) -> int:
        """The bytes of its pixels."""
        return math.prod(self.shape)

    def check(self) -> None:
        """Raises ValueError if the file is not an image, or damaged. Keeps no pixels."""
        check_image(self.content, self.name)

    def pixels(self) -> np.ndarray:
        """Decodes the file: RGB uint8 [H, W, 3], not kept. Raises ValueError if it is damaged."""
        return load_image(self.content, self.name)

    def frames(self, height: int, width: int, config: ProcessorConfig) -> np.ndarray:
        """The pixels at this size as the equal frames of one step of time, uint8 [F, H, W, 3]."""
        resized_HWC = self._resized
        if resized_HWC is None or resized_HWC.shape[:2] != (height, width):
            self._resized = resized_HWC = resize(self.pixels(), height, width)
        return np.broadcast_to(resized_HWC, (config.temporal_patch_size, *resized_HWC.shape))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_resized": None}

    def __repr__(self) -> str:
        return f"Picture({len(self.content)} bytes, {self.name!r})"


class _ClipFrames(Sequence[np.ndarray]):
    """The frames of a clip, decoded when the first is used, and kept from then on."""

    def __init__(self, clip: Clip, config: ProcessorConfig, count: int):
        self._clip, self._config, self._count = clip, config, count
        self._frames: Sequence[np.ndarray] | None = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: Any) -> Any:
        if self._frames is None:
            self._frames = load_video(self._clip.content, self._config, self._clip.name).frames
        return self._frames[place]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_frames": None}


class Clip:
    """A video file. What its prompt shows of it (number of frames, their size and times) is found by decoding it once;
    its frames are decoded again when they are used, and then kept."""

    nbytes = 24 << 20
    """The bytes of its frames, at most about: a prompt of 4,096 tokens shows 2,048 pixels with each."""

    def __init__(self, content: bytes, name: str = "video"):
        self.content = content
        self.name = name
        self._video: tuple[ProcessorConfig, Video] | None = None

    def video(self, config: ProcessorConfig) -> Video:
        """The video as `config` chooses and resizes its frames. Raises ValueError if the file is damaged."""
        if self._video is None or self._video[0] != config:
            found = load_video(self.content, config, self.name)
            frames = _ClipFrames(self, config, len(found.frames))
            self._video = config, dataclasses.replace(found, frames=frames)
        return self._video[1]

    def __repr__(self) -> str:
        return f"Clip({len(self.content)} bytes, {self.name!r})"


Image = np.ndarray | Picture


def open_video(video: Video | Clip, config: ProcessorConfig, name: str = "video") -> Video:
    """The video, opened if it is a clip; raises ValueError if it is invalid."""
    if isinstance(video, Clip):
        return video.video(config)  # valid, since it is computed from the file
    check_video(video, config, name)
    return video


def image_patches(image: Image, config: ProcessorConfig, name: str = "image") -> MediaPatches:
    """The patches of one image; an array is repeated to fill the frames of a patch. Raises ValueError."""
    if not isinstance(image, Picture):
        check_pixels(image, name)
    height, width, _ = image.shape
    return MediaPatches((image,), (image_grid(height, width, config, name),), config)


def video_patches(video: Video | Clip, config: ProcessorConfig, name: str = "video") -> MediaPatches:
    """The patches of one video; the last frame is repeated to fill the last step of time. Raises ValueError."""
    found = open_video(video, config, name)
    return MediaPatches((found,), (video_grid(found, config, name),), config)


@dataclasses.dataclass(frozen=True, eq=False)
class MediaPatches:
    """The patches [I, C] uint8 of images and videos, made by each call, and their grids (time, height, width) in
    patches. Picklable. The patches of a merged block are side by side."""

    media: Sequence[Image | Video]
    grids: Sequence[tuple[int, int, int]]
    config: ProcessorConfig

    @property
    def grid_thw_N3(self) -> np.ndarray:
        """The grids as an array, int32."""
        return np.asarray(self.grids, np.int32).reshape(-1, 3)

    def __call__(self) -> np.ndarray:
        sizes = zip(self.media, self.grids, strict=True)
        parts = [to_patches(self._frames(one, height, width), self.config) for one, (_, height, width) in sizes]
        return np.concatenate([np.zeros((0, self.config.patch_width), np.uint8), *parts])

    def pixels(self) -> list[np.ndarray]:
        """The frames of each image and video at its size for the model, uint8 [F, H, W, 3]; the equal frames of an
        image, and those that fill a video's last step of time, included."""
        return [self._frames(one, grid[1], grid[2]) for one, grid in zip(self.media, self.grids, strict=True)]

    def _frames(self, one: Image | Video, grid_height: int, grid_width: int) -> np.ndarray:
        height, width = grid_height * self.config.patch_size, grid_width * self.config.patch_size
        if isinstance(one, Video):
            return video_tensor(one.frames, height, width, self.config.temporal_patch_size)
        if isinstance(one, Picture):
            return one.frames(height, width, self.config)
        return image_tensor(one, height, width, self.config.temporal_patch_size)


def media_patches(
    images: Sequence[Image], videos: Sequence[Video | Clip], config: ProcessorConfig
) -> tuple[list[MediaPatches], list[MediaPatches]]:
    """The patches of each image and of each video. Raises ValueError, naming its number, for an invalid one."""
    shown = [image_patches(image, config, f"image {number}") for number, image in enumerate(images)]
    return shown, [video_patches(video, config, f"video {number}") for number, video in enumerate(videos)]


def joined(parts: Iterable[MediaPatches], config: ProcessorConfig) -> MediaPatches:
    """All of them, in order."""
    parts = list(parts)
    media = tuple(one for part in parts for one in part.media)
    return MediaPatches(media, tuple(grid for part in parts for grid in part.grids), config)


def patches_of(prompts: Sequence[Features]) -> list[np.ndarray]:
    """The patches of each prompt; those that must be decoded are made by several threads."""
    if sum(callable(prompt.patches) and prompt.num_patches > 0 for prompt in prompts) < 2:
        return [prompt.patches_IC for prompt in prompts]
    with ThreadPoolExecutor(min(_THREADS, len(prompts)), thread_name_prefix="patches") as threads:
        return list(threads.map(lambda prompt: prompt.patches_IC, prompts))
