"""Video files, decoded by PyAV: `pip install 'zppo-jax[video]'`."""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from zppo_jax.processor.config import ProcessorConfig
from zppo_jax.processor.patches import resize_frame
from zppo_jax.processor.videos import Video, sample_indices, smart_resize_video

# Containers only: FFmpeg would follow a play list to other files and addresses, or render a text file as a video.
_FORMATS = "mov,mp4,matroska,webm,avi,gif,apng,mpeg,mpegts,m4v,flv,ogg,asf"


def load_video(source: bytes | str | os.PathLike[str], config: ProcessorConfig | None = None, name: str = "") -> Video:
    """Decodes frames of a video file (path or content), chosen and resized by `config`.

    Frames are chosen as in transformers: by the number and the mean rate of the frames that the file states (if it does
    not state a number, they are counted). If another number of frames decodes (an edit list hides some, those before
    the first whole picture of a cut film do not decode, a container counts one too many), the choice is made among the
    frames that decode, by the time stamps of the file. A frame is resized as soon as it is decoded, so that a long film
    needs no more memory than `config.video_max_pixels`. The rotation and mirroring that phones write are applied, which
    transformers leaves to its decoder. `name` is the sample's name in errors. Raises ValueError for a file that is
    missing, not a video, damaged or cut off, ImportError without PyAV.
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
    except Exception as error:  # damaged files also cause Python's own kinds, in decoding, seeking, overflow
        if str(error).startswith(f"{label}: "):
            raise
        raise ValueError(f"{label}: cannot be read: {error}") from error


@dataclasses.dataclass
class _Film:
    """The result of one pass over a file: the chosen frames, resized, and the time stamps of all frames that decode."""

    frames: list[np.ndarray] = dataclasses.field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    times: list[int | None] = dataclasses.field(default_factory=list)
    time_base: Fraction = Fraction(1)
    num_packets: int = 0

    def numbers(self, fps: Fraction) -> list[float]:
        """The frames' numbers, counted from the first one, by their time stamps; by position if the file has none."""
        times = [time for time in self.times if time is not None]
        if len(times) < len(self.times) or any(later <= time for time, later in itertools.pairwise(times)):
            return [float(number) for number in range(len(self.times))]
        return [float((time - times[0]) * self.time_base * fps) for time in times]


def _read(av: ModuleType, content: Any, config: ProcessorConfig, label: str) -> Video:
    with _open(av, content) as container:
        if not container.streams.video:
            raise ValueError(f"{label}: the file holds no video stream")
        stream = container.streams.video[0]
        stated, fps = stream.frames, Fraction(stream.average_rate or stream.guessed_rate or 0)
        if stream.codec_context is None:
            raise ValueError(f"{label}: FFmpeg does not know its codec: encode it again")
        _check_num_pixels(stream, label)
        indexed = len(getattr(stream, "index_entries", ())) or stated  # without the frames that an edit list hides
        total = stated if stated > 1 else sum(packet.size > 0 for packet in container.demux(stream))
    if total < 1 or fps <= 0:
        raise ValueError(f"{label}: the video states {total} frames at {float(fps):g} a second: nothing to choose from")
    indices = sample_indices(total, float(fps), config).tolist()
    film = _decode(av, content, indices, config, label)
    # An index with fewer packets than were read is not from the file, which is cut off: use the stated number.
    expected = min(stated, indexed) if indexed >= film.num_packets else stated
    if expected - film.num_packets > 1 or not film.times:
        raise ValueError(
            f"{label}: of {max(expected, total)} frames it holds {film.num_packets}, of which {len(film.times)} can be "
            "decoded: damaged or cut off, encode it again"
        )
    if len(film.times) != total:
        indices = sample_indices(len(film.times), float(fps), config).tolist()
        numbers = film.numbers(fps)
        film = _decode(av, content, indices, config, label)
        indices = [numbers[index] for index in indices]
    return Video(film.frames, float(fps), indices, film.size)


def _check_num_pixels(picture: Any, label: str) -> None:
    """Applies the bound of `load_image` to a stream or one of its frames, so that none fills the memory."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and picture.width * picture.height > limit:
        raise ValueError(f"{label}: frames of {picture.width} x {picture.height} pixels exceed the limit of {limit}")


def _open(av: ModuleType, content: Any) -> Any:
    content.seek(0)
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "none"}
    # A title that is not UTF-8 does not make a film unusable. PyAV 19 always decodes titles leniently.
    lenient = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    return av.open(content, options=options, **lenient)


def _decode(av: ModuleType, content: Any, indices: list[int], config: ProcessorConfig, label: str) -> _Film:
    """Makes one pass over the file and takes the frames with these numbers. Raises FFmpegError for damage."""
    film, wanted = _Film(), set(indices)
    with _open(av, content) as container:
        film.time_base = container.streams.video[0].time_base
        for frame in _frames(av, container, film):
            if len(film.times) in wanted:
                film.frames.append(_picture(frame, film, len(indices), config, label))
            film.times.append(frame.pts)
    return film


def _frames(av: ModuleType, container: Any, film: _Film) -> Iterator[Any]:
    """Yields all frames that decode. Errors before the first are skipped: they belong to pictures that were cut off."""
    failure, any_decoded = None, False
    for packet in container.demux(video=0):
        film.num_packets += packet.size > 0
        try:
            frames = packet.decode()
        except av.InvalidDataError as error:
            if any_decoded:
                raise
            failure, frames = error, []
        any_decoded = any_decoded or bool(frames)
        yield from frames
    if failure is not None and not any_decoded:
        raise failure


def _picture(frame: Any, film: _Film, num_frames: int, config: ProcessorConfig, label: str) -> np.ndarray:
    """The frame in its display orientation, resized. Raises ValueError if its size differs from the first one's."""
    _check_num_pixels(frame, label)
    pixels_HWC = _oriented(frame.to_ndarray(format="rgb24"), frame.side_data.get("DISPLAYMATRIX"))
    size = pixels_HWC.shape[0], pixels_HWC.shape[1]
    film.size = film.size if film.frames else size
    if size != film.size:
        raise ValueError(
            f"{label}: frame {len(film.times)} is {size[0]} x {size[1]}, the first one {film.size[0]} x "
            f"{film.size[1]}: bring all frames to one size"
        )
    height, width = smart_resize_video(num_frames, *size, config, label)
    return resize_frame(np.ascontiguousarray(pixels_HWC), height, width)


def _oriented(pixels_HWC: np.ndarray, matrix: Any) -> np.ndarray:
    """Rotates and mirrors a frame by a display matrix, whose upper left part maps (x, y) to (a x + c y, b x + d y).

    All eight orientations, as ffmpeg applies them; any other angle is rounded to the nearest of them.
    """
    if matrix is None:
        return pixels_HWC
    a, b, _, c, d = np.frombuffer(matrix, np.int32, 5).tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):  # x becomes y
        pixels_HWC, a, d = pixels_HWC.swapaxes(0, 1), c, b
    return pixels_HWC[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _pyav() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise ImportError("load_video needs PyAV: pip install 'zppo-jax[video]'") from error
    return av
