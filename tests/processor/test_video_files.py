"""Video files by PyAV: small ones are encoded here, then read, damaged and compared with transformers' reader."""

from __future__ import annotations

import builtins
import io
import re
import struct

import numpy as np
import pytest
from PIL import Image

from zppo_jax.processor import ProcessorConfig, load_video

av = pytest.importorskip("av")

HEIGHT, WIDTH, COUNT = 64, 96, 21
CODECS = {
    "mp4": ("libx264", "yuv420p"),
    "matroska": ("ffv1", "bgr0"),  # states no number of frames
    "webm": ("libvpx-vp9", "yuv420p"),
    "avi": ("mpeg4", "yuv420p"),
    "gif": ("gif", "rgb8"),
    "mpegts": ("libx264", "yuv420p"),
}


def _frames(count: int = COUNT) -> list[np.ndarray]:
    """Makes frames: frame i has the level 10 i; the upper left quarter is lighter by 40."""
    frames = [np.full((HEIGHT, WIDTH, 3), 10 * index, np.uint8) for index in range(count)]
    for frame in frames:
        frame[: HEIGHT // 2, : WIDTH // 2] += 40
    return frames


def _encode(container: str = "mp4", frames: list[np.ndarray] | None = None, rate: int = 10) -> bytes:
    codec, pixel_format = CODECS[container]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, pixel_format
        for frame in _frames() if frames is None else frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()


@pytest.fixture(scope="module")
def mp4() -> bytes:
    return _encode()


@pytest.mark.parametrize("container", CODECS)
def test_the_chosen_frames_of_a_file(container):
    video = load_video(_encode(container))
    assert video.fps == 10.0 and video.indices == [0, 7, 13, 20] and video.source_size == (HEIGHT, WIDTH)
    levels = [int(frame[HEIGHT * 3 // 4, WIDTH * 3 // 4, 0]) for frame in video.frames]
    np.testing.assert_allclose(levels, [0, 70, 130, 200], atol=36 if container == "gif" else 6)


def test_a_file_in_a_prompt(processor, mp4, tmp_path):
    (tmp_path / "a.mp4").write_bytes(mp4)
    video = processor.load_video(tmp_path / "a.mp4")
    text = processor.tokenizer.decode(processor.features("Why?", [], [video]).token_ids_T.tolist())
    assert "<0.3 seconds>" in text and "<1.6 seconds>" in text  # (0 + 0.7) / 2 rounds to even, (1.3 + 2) / 2


def test_frames_and_choice_agree_with_transformers(mp4, tmp_path):
    pytest.importorskip("torch")
    from transformers.video_utils import read_video_pyav

    from tests.processor.oracle import video_processor

    (tmp_path / "a.mp4").write_bytes(mp4)
    config = ProcessorConfig(video_fps=3.0)
    expected, metadata = read_video_pyav(
        str(tmp_path / "a.mp4"),  # pyright: ignore[reportArgumentType]
        lambda metadata: video_processor(config).sample_frames(metadata, fps=3.0),
    )
    video = load_video(tmp_path / "a.mp4", config)
    assert (
        video.fps == metadata.fps
        and video.indices == np.asarray(metadata.frames_indices).tolist()
        and len(expected) == 6
    )
    np.testing.assert_array_equal(np.stack(video.frames), expected)


def test_a_title_in_another_encoding_is_no_damage(mp4):
    start = mp4.index(b"Lavf")
    video = load_video(mp4[:start] + b"L\xe4vf" + mp4[start + 4 :])
    assert video.indices == [0, 7, 13, 20]


def test_a_frame_is_resized_only_once(mp4):
    """A file's frames are resized while they are decoded, to the processor's size for the source."""
    from zppo_jax.processor.media import media_patches

    config = ProcessorConfig(video_fps=3.0, video_max_frames=5, video_max_pixels=12 * 1024)
    video = load_video(mp4, config)
    [patches] = media_patches((), [video], config)[1]
    height, width = video.frames[0].shape[:2]
    assert patches.grid_thw_N3.tolist() == [[3, height // 16, width // 16]] and height * width < HEIGHT * WIDTH
    assert video.source_size == (HEIGHT, WIDTH)


# The matrix that a phone writes: the corner where the lighter quarter must end up, as (row, column) of the corner.
@pytest.mark.parametrize(
    ("matrix", "corner"), [((0, 1, -1, 0), (0, -1)), ((0, -1, 1, 0), (-1, 0)), ((-1, 0, 0, -1), (-1, -1))]
)
def test_the_rotation_of_a_phone_is_applied(mp4, matrix, corner):
    start = mp4.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    rotated = mp4[:start] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + mp4[start + 36 :]
    video = load_video(rotated)
    assert video.source_size == ((WIDTH, HEIGHT) if matrix[0] == 0 else (HEIGHT, WIDTH))
    levels = {place: int(video.frames[0][place][0]) for place in ((0, 0), (0, -1), (-1, 0), (-1, -1))}
    assert max(levels, key=lambda place: levels[place]) == corner


def _garbled(content: bytes) -> bytes:
    start = content.index(b"mdat") + 400
    return content[:start] + bytes(len(content) - start)


def _without_index(content: bytes) -> bytes:
    return content[: content.index(b"moov")]


DAMAGED = {
    "empty": lambda content: b"",
    "text": lambda content: b"hello " * 1000,
    "cut off": lambda content: content[: len(content) // 2],
    "no index": _without_index,
    "garbled": _garbled,
    "play list": lambda content: b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n",
    "picture": lambda content: _png(),
}


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_named(mp4, damage, tmp_path):
    (tmp_path / "a.mp4").write_bytes(DAMAGED[damage](mp4))
    with pytest.raises(ValueError, match=r"a\.mp4: cannot be (decoded as a video|read): \S") as caught:
        load_video(tmp_path / "a.mp4")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"^sample 7: "):
        load_video(DAMAGED[damage](mp4), name="sample 7")


def test_a_file_that_ends_early_is_named():
    content = _encode("avi")
    places = [match.start() for match in re.finditer(b"00dc", content)]
    cut = content[: places[10]]  # nine frames are whole, the others and the index are gone
    with pytest.raises(ValueError, match="film: of 21 frames it holds 9, of which 9 can be decoded: damaged or cut"):
        load_video(cut, name="film")


@pytest.mark.filterwarnings("ignore")
def test_damage_is_never_another_error(mp4):
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(mp4)
        for place in rng.integers(0, len(mp4), rng.integers(1, 20)):
            damaged[place] = rng.integers(0, 256)
        try:
            assert load_video(bytes(damaged), name="sample 9").frames[0].shape[2] == 3
        except ValueError as error:
            assert str(error).startswith("sample 9: ")


def test_other_unfit_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.mp4: no such file"):
        load_video(tmp_path / "gone.mp4")
    with pytest.raises(ValueError, match="no such file"):
        load_video(tmp_path)
    with pytest.raises(ValueError, match="one: 1 frames, but a video has at least 2"):
        load_video(_encode(frames=_frames(1)), name="one")
    with pytest.raises(ValueError, match="none: "):
        load_video(_encode(frames=[]), name="none")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        stream = output.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        output.mux(stream.encode(sound))
        output.mux(stream.encode())
    with pytest.raises(ValueError, match="sound: the file holds no video stream"):
        load_video(buffer.getvalue(), name="sound")


def test_huge_frames_are_refused_before_they_are_decoded(mp4, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH - 1)
    with pytest.raises(ValueError, match="sample 3: frames of 96 x 64 pixels exceed the limit of 6143"):
        load_video(mp4, name="sample 3")


def test_the_extra_is_named_without_pyav(mp4, monkeypatch):
    ordinary_import = builtins.__import__

    def without_pyav(name, *arguments, **keywords):
        if name == "av":
            raise ImportError("No module named 'av'")
        return ordinary_import(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_pyav)
    with pytest.raises(ImportError, match=r"pip install 'zppo-jax\[video\]'") as caught:
        load_video(mp4)
    assert "\n" not in str(caught.value)
