"""Videos cut without encoding them again, or mirrored: only frames that decode count, in their display orientation.

The oracle of orientations is libavfilter, with the filters that ffmpeg applies to a film with such a display matrix.
"""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from zppo_jax.processor import ProcessorConfig, load_image, load_video

av = pytest.importorskip("av")

HEIGHT, WIDTH, COUNT = 64, 96, 21
OPEN_GOPS = {
    "libx264": {"x264-params": "keyint=6:min-keyint=6:open-gop=1:bframes=2:b-adapt=0:scenecut=0"},
    "libx265": {"x265-params": "keyint=6:min-keyint=6:open-gop=1:bframes=2:b-adapt=0:scenecut=0:log-level=none"},
}


def _encode(
    codec: str = "libx264",
    container: str = "mp4",
    frames: list[np.ndarray] | None = None,
    options: dict[str, str] | None = None,
) -> bytes:
    """Encodes a film: frame i has the level 10 i; ten frames per second."""
    buffer = io.BytesIO()
    frames = frames or [np.full((HEIGHT, WIDTH, 3), 10 * number, np.uint8) for number in range(COUNT)]
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=10, options=options or {})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "rgb24" if codec == "png" else "yuv420p"
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()


def _copied(
    content: bytes,
    container: str = "mp4",
    first: int = 0,
    seconds: Fraction = Fraction(0),
    pause_before: int = 10**9,
    **options: str,
) -> bytes:
    """Copies the packets from number `first` on, `seconds` earlier and not encoded again, as `ffmpeg -c copy` does.

    Those from number `pause_before` on are a second later.
    """
    buffer = io.BytesIO()
    with av.open(io.BytesIO(content)) as source, av.open(buffer, "w", format=container, options=options) as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size and number >= first:
                earlier = int((seconds - (number >= pause_before)) / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - earlier, packet.dts - earlier, stream
                output.mux(packet)
    return buffer.getvalue()


def _key_packets(content: bytes) -> list[int]:
    with av.open(io.BytesIO(content)) as source:
        return [number for number, packet in enumerate(source.demux(video=0)) if packet.is_keyframe]


def _levels(video) -> list[int]:
    return [round(float(frame.mean()) / 10) for frame in video.frames]


def test_what_an_edit_list_hides_does_not_count():
    """A phone's trim: all 21 frames are in the file and 14 are shown."""
    content = _copied(_encode(), seconds=Fraction(7, 10), avoid_negative_ts="disabled", use_editlist="1")
    with av.open(io.BytesIO(content)) as source:
        assert source.streams.video[0].frames == COUNT
    video = load_video(content)
    assert video.indices == [0, 4, 9, 13] and video.fps == 10
    assert _levels(video) == [7, 11, 16, 20]


@pytest.mark.parametrize("container", ["mp4", "matroska"])
@pytest.mark.parametrize("codec", OPEN_GOPS)
def test_a_film_that_begins_with_an_open_group_of_pictures(codec, container):
    """Pictures after its first key frame that are shown before it refer to pictures that were cut off."""
    whole = _encode(codec, options=OPEN_GOPS[codec])
    content = _copied(whole, container, first=_key_packets(whole)[1])
    video = load_video(content)
    assert video.indices == [0, 5, 9, 14] and _levels(video) == [6, 11, 15, 20]


def test_the_time_stamps_of_a_cut_film_are_the_files():
    """A frame's number follows its time: after a pause of a second, numbers are larger by ten."""
    whole = _encode(options=OPEN_GOPS["libx264"])
    _, first, later, *_ = _key_packets(whole)
    video = load_video(_copied(whole, "matroska", first, pause_before=later))
    assert video.indices == [0, 15, 19, 24] and _levels(video) == [6, 11, 15, 20]


@pytest.mark.parametrize("stated", [22, 10**9])
def test_a_container_that_states_frames_too_many(stated):
    content = bytearray(_encode("mpeg4", "avi"))
    for chunk, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):  # of the file and of the stream
        struct.pack_into("<I", content, content.index(chunk) + offset, stated)
    video = load_video(bytes(content))
    assert video.indices == [0, 7, 13, 20] and _levels(video) == [0, 7, 13, 20]


def test_a_film_whose_middle_is_damaged_is_refused():
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8) for _ in range(COUNT)]
    content = bytearray(_encode(frames=noise, options={"bf": "0"}))
    middle = len(content) // 2
    content[middle : middle + 4000] = bytes(4000)
    with pytest.raises(ValueError, match=r"^film: cannot be decoded as a video: "):
        load_video(bytes(content), name="film")


# Display matrices (a, b, c, d) and the filters that ffmpeg's automatic rotation uses for them.
ORIENTATIONS: dict[tuple[int, int, int, int], list[tuple[str, str]]] = {
    (1, 0, 0, 1): [],
    (0, 1, -1, 0): [("transpose", "clock")],
    (-1, 0, 0, -1): [("hflip", ""), ("vflip", "")],
    (0, -1, 1, 0): [("transpose", "cclock")],
    (-1, 0, 0, 1): [("hflip", "")],
    (1, 0, 0, -1): [("vflip", "")],
    (0, 1, 1, 0): [("transpose", "cclock_flip")],
    (0, -1, -1, 0): [("transpose", "clock_flip")],
}


def _filtered(frame, filters: list[tuple[str, str]]) -> np.ndarray:
    graph = av.filter.Graph()
    nodes = [graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)]
    nodes += [graph.add(name, arguments) for name, arguments in filters] + [graph.add("buffersink")]
    for before, after in itertools.pairwise(nodes):
        before.link_to(after)
    graph.configure()
    graph.push(frame)
    return graph.pull().to_ndarray(format="rgb24")


@pytest.fixture(scope="module")
def film() -> bytes:
    rng = np.random.default_rng(1)
    return _encode("png", "mov", [rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8) for _ in range(4)])


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_every_orientation_is_ffmpegs_to_the_pixel(matrix, film):
    start = film.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    content = film[:start] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + film[start + 36 :]
    with av.open(io.BytesIO(film)) as source:
        expected = [_filtered(frame, ORIENTATIONS[matrix]) for frame in source.decode(video=0)]
    video = load_video(content, ProcessorConfig(video_min_pixels=1))
    assert video.source_size == expected[0].shape[:2]
    np.testing.assert_array_equal(np.stack(video.frames), np.stack(expected))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_an_image_is_applied(orientation):
    """EXIF: 2 to 4 are mirrored, turned by a half, mirrored upside down; 5 to 8 change height and width."""
    turns: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda image: image,
        2: lambda image: image[:, ::-1],
        3: lambda image: image[::-1, ::-1],
        4: lambda image: image[::-1],
        5: lambda image: image.swapaxes(0, 1),
        6: lambda image: np.rot90(image, -1),
        7: lambda image: image.swapaxes(0, 1)[::-1, ::-1],
        8: lambda image: np.rot90(image),
    }
    pixels = np.random.default_rng(2).integers(0, 256, (5, 9, 3)).astype(np.uint8)
    for form in ("PNG", "TIFF", "WEBP"):
        buffer, exif = io.BytesIO(), Image.Exif()
        exif[274] = orientation
        options = {"lossless": True} if form == "WEBP" else {}
        Image.fromarray(pixels).save(buffer, form, exif=exif, **options)
        np.testing.assert_array_equal(load_image(buffer.getvalue()), turns[orientation](pixels), form)
