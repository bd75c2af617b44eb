"""Video files, decoded by PyAV: `pip install 'zppo-jax[video]'`."""

from __future__ import annotations

import io
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from zppo_jax.processor.config import ProcessorConfig
from zppo_jax.processor.patches import resize_frame
from zppo_jax.processor.videos import Video, sample_indices, smart_resize_video

# Containers only: of other files FFmpeg would follow a play list to other files and addresses, or film a text.
_FORMATS = "mov,mp4,matroska,webm,avi,gif,apng,mpeg,mpegts,m4v,flv,ogg,asf"


def load_video(source: bytes | str | os.PathLike[str], config: ProcessorConfig | None = None, name: str = "") -> Video:
    """Frames of a video file (path or content), chosen and resized as `config` says.

    The choice is transformers': by the number and the mean rate of the frames, as the file states them (the number is
    counted where it does not). A frame is resized as soon as it is decoded, so that a long film needs no more memory
    than `config.video_max_pixels`. The rotation that phones write is applied, which transformers leaves to its
    decoder. `name` says in errors which sample it was. Raises ValueError for a file that is missing, no video,
    damaged or cut off, ImportError without PyAV.
    """
    av = _pyav()
    label = name or ("video bytes" if isinstance(source, bytes) else str(source))
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise ValueError(f"{label}: no such file")
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as content:
            return _read(av, content, config or ProcessorConfig(), label)
    except av.FFmpegError as error:  # some of these are ValueErrors and OSErrors too
        raise ValueError(f"{label}: cannot be decoded as a video: {error.strerror}") from error
    except Exception as error:  # from damaged files, Python's own as well: of decoding, seeking, overflow
        if str(error).startswith(f"{label}: "):
            raise
        raise ValueError(f"{label}: cannot be read: {error}") from error


def _read(av: ModuleType, content: Any, config: ProcessorConfig, label: str) -> Video:
    with _open(av, content) as container:
        if not container.streams.video:
            raise ValueError(f"{label}: the file holds no video stream")
        stream = container.streams.video[0]
        total, fps = stream.frames, float(stream.average_rate or stream.guessed_rate or 0)
        if stream.codec_context is None:
            raise ValueError(f"{label}: FFmpeg does not know its codec: encode it anew")
        _check_num_pixels(stream, label)
        if total < 1:
            total = sum(packet.size > 0 for packet in container.demux(stream))
    if total < 1 or fps <= 0:
        raise ValueError(f"{label}: the video states {total} frames at {fps:g} a second: nothing to choose from")
    indices = sample_indices(total, fps, config)
    with _open(av, content) as container:
        frames, size = _decode(container, indices.tolist(), config, label)
    return Video(frames, fps, indices.tolist(), size)


def _check_num_pixels(picture: Any, label: str) -> None:
    """The bound of `load_image` for a stream or one of its frames, so that none fills the memory."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and picture.width * picture.height > limit:
        raise ValueError(f"{label}: frames of {picture.width} x {picture.height} pixels exceed the limit of {limit}")


def _open(av: ModuleType, content: Any) -> Any:
    content.seek(0)
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "none"}
    # A title that is no UTF-8 is no reason to refuse a film. PyAV 19 decodes titles leniently, and only so.
    lenient = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    return av.open(content, options=options, **lenient)


def _decode(
    container: Any, indices: list[int], config: ProcessorConfig, label: str
) -> tuple[list[np.ndarray], tuple[int, int]]:
    """The frames with these numbers, resized, and their size before."""
    wanted, frames, size, decoded = set(indices), [], (0, 0), 0
    for number, frame in enumerate(container.decode(video=0)):
        decoded = number + 1
        if number in wanted:
            _check_num_pixels(frame, label)
            pixels_HWC = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
            size = size if frames else (pixels_HWC.shape[0], pixels_HWC.shape[1])
            if pixels_HWC.shape[:2] != size:
                raise ValueError(
                    f"{label}: frame {number} is {pixels_HWC.shape[0]} x {pixels_HWC.shape[1]}, the first one "
                    f"{size[0]} x {size[1]}: bring all frames to one size"
                )
            height, width = smart_resize_video(len(indices), *size, config, label)
            frames.append(resize_frame(np.ascontiguousarray(pixels_HWC), height, width))
        if number == indices[-1]:
            return frames, size
    raise ValueError(f"{label}: it ends after {decoded} frames, but states more: damaged or cut off, encode it anew")


def _pyav() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise ImportError("load_video needs PyAV: pip install 'zppo-jax[video]'") from error
    return av
