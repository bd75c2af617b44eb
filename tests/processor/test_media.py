"""Image and video files of a prompt: nothing is decoded early, pixels are kept once, patches equal those of arrays."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from tests.processor.test_video_files import mp4  # noqa: F401
from zppo_jax.processor import Clip, Picture, Processor, ProcessorConfig, build_tokenizer, default_chat_template
from zppo_jax.processor.media import patches_of
from zppo_jax.types import IMAGE_MARK, VIDEO_MARK

CONFIG = ProcessorConfig(min_pixels=32 * 32, max_pixels=16 * 32 * 32, video_max_pixels=12 * 1024, video_max_frames=4)


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(build_tokenizer(["a b c"], 400), default_chat_template(), CONFIG)


def encoded(height: int, width: int, kind: str = "PNG", orientation: int = 1) -> bytes:
    """An image file of noise; as a JPEG, its camera was turned by `orientation`."""
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_shape_is_that_of_the_pixels(orientation):
    picture = Picture(encoded(40, 70, "JPEG", orientation))
    assert picture.shape == picture.pixels().shape and picture.nbytes == picture.pixels().nbytes


def test_a_file_gives_the_features_of_its_pixels(processor):
    files = [encoded(40, 70), encoded(300, 200)]
    pictures = [Picture(file) for file in files]
    lazy, eager = (processor.features("a b", each) for each in (pictures, [one.pixels() for one in pictures]))
    assert lazy.num_patches == len(eager.patches_IC)
    for name in ("token_ids_T", "positions_3T", "patches_IC", "grid_thw_N3"):
        np.testing.assert_array_equal(getattr(lazy, name), getattr(eager, name))
    [copy] = patches_of([pickle.loads(pickle.dumps(lazy))])  # as it comes from a worker process
    np.testing.assert_array_equal(copy, eager.patches_IC)
    for one, other in zip(patches_of([lazy, eager]), patches_of([eager, lazy]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_file_is_decoded_when_used_and_only_once(processor, monkeypatch):
    decoded = []
    monkeypatch.setattr(Picture, "pixels", lambda self, real=Picture.pixels: decoded.append(self.name) or real(self))
    picture = Picture(encoded(300, 200), "one")
    first, second = (processor.features(text, [picture]) for text in ("a", "b c"))
    assert not decoded
    assert len(pickle.dumps(first)) < len(picture.content) + 10_000
    np.testing.assert_array_equal(first.patches_IC, second.patches_IC)
    assert decoded == ["one"]
    assert len(pickle.dumps(first)) < len(picture.content) + 10_000, "pixels do not travel to another process"


def test_a_damaged_file_is_named(processor):
    content = encoded(300, 200)
    with pytest.raises(ValueError, match=r"photo: not an image"):
        processor.features("a", [Picture(b"no image", "photo")])
    cut = processor.features("a", [Picture(content[: len(content) // 2], "photo")])  # its head is whole
    with pytest.raises(ValueError, match=r"photo: cannot be decoded"):
        _ = cut.patches_IC


def test_a_clip_gives_the_features_of_its_video(processor, mp4):  # noqa: F811
    clip = Clip(mp4, "clip")
    lazy, eager = (processor.features("a", [], [one]) for one in (clip, processor.load_video(mp4)))
    assert len(pickle.dumps(lazy)) < len(mp4) + 10_000
    for name in ("token_ids_T", "positions_3T", "patches_IC", "grid_thw_N3"):
        np.testing.assert_array_equal(getattr(lazy, name), getattr(eager, name))
    assert processor.num_tokens("a", (), [clip]) == lazy.num_tokens


def test_images_and_videos_at_their_marks(processor, mp4):  # noqa: F811
    """The order of patches and grids is that of the prompt, which the tower's features follow."""
    small, large, clip = Picture(encoded(40, 70)), Picture(encoded(300, 200)), Clip(mp4)
    text = f"a {IMAGE_MARK} b {VIDEO_MARK} c {IMAGE_MARK}"
    features = processor.features(text, [large, small], [clip])
    parts = [processor.features("a", *media) for media in (([large],), ([], [clip]), ([small],))]
    np.testing.assert_array_equal(features.patches_IC, np.concatenate([part.patches_IC for part in parts]))
    np.testing.assert_array_equal(features.grid_thw_N3, np.concatenate([part.grid_thw_N3 for part in parts]))
    assert features.grid_types_N.tolist() == [1, 2, 1]
    assert features.num_tokens == processor.num_tokens(text, [large.shape[:2], small.shape[:2]], [clip])
