"""The whole processor against transformers' Qwen3VLProcessor; oracle.py says which parts of transformers are run."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize
from transformers.video_utils import VideoMetadata

from tests.processor.oracle import Oracle, video_processor
from zppo_jax.processor import Processor, ProcessorConfig, Video, sample_indices
from zppo_jax.processor.media import joined, media_patches
from zppo_jax.processor.patches import normalised
from zppo_jax.processor.videos import smart_resize_video, time_stamps

TEXTS = ("Add them.", "What is the sum?", " \n", "Two\n\n lines: 3 + 4", "1.5 seconds> of <x")
LEVEL = 1.01 / 127.5  # one grey level after normalising


@pytest.fixture(scope="module")
def oracle(processor, saved_directory):
    return Oracle(processor, saved_directory)


def _check_pixels(name: str, found: np.ndarray, expected: np.ndarray) -> None:
    """Images agree to one grey level. Torch resizes video frames with weights of 16 bits, Pillow of 32: in noise six
    values in a million differ by two levels."""
    assert found.dtype == expected.dtype == np.float32 and found.shape == expected.shape, name
    difference = np.abs(found - expected)
    assert difference.max() <= (2 * LEVEL if "videos" in name else LEVEL), name
    assert (difference > LEVEL).mean() < 1e-4, name


def _pixels(rng: np.random.Generator, *shape: Any) -> np.ndarray:
    return rng.integers(0, 256, (*shape, 3), dtype=np.uint8)


def _video(rng: np.random.Generator) -> Video:
    count, height, width = rng.integers(2, 8), rng.integers(8, 130), rng.integers(8, 130)
    indices = np.sort(rng.choice(200, count, replace=False)).tolist()
    return Video(list(_pixels(rng, count, height, width)), float(rng.choice([8, 10, 24, 25, 29.97])), indices)


def _sample(rng: np.random.Generator) -> tuple:
    images = [_pixels(rng, *rng.integers(8, 150, 2).tolist()) for _ in range(rng.integers(0, 4))]
    videos = [_video(rng) for _ in range(rng.integers(0, 3))]
    return random.Random(int(rng.integers(1000))).choice(TEXTS), images, videos


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_batches_with_images_and_videos_agree_with_transformers(processor, oracle, padding_side):
    rng = np.random.default_rng(0)
    counts = np.zeros(2, int)
    for _ in range(12):
        samples = [_sample(rng) for _ in range(rng.integers(1, 4))]
        found, expected = processor.hf_inputs(samples, padding_side), oracle(samples, padding_side)
        assert set(found) == set(expected)
        for name, value in expected.items():
            if name.startswith("pixel_values"):
                _check_pixels(name, found[name], value)
            else:
                np.testing.assert_array_equal(found[name], value, name)
        counts += [len(expected.get("image_grid_thw", ())), len(expected.get("video_grid_thw", ()))]
    assert counts.min() > 10  # there was something to compare


def test_the_layout_of_a_video(processor, oracle):
    frames = [np.full((64, 64, 3), 50 * index, np.uint8) for index in range(3)]
    video = Video(frames, fps=10.0, indices=[0, 5, 20])
    features = processor.features("Add.", [frames[0]], [video])
    pads = "<|video_pad|>" * 4
    text = processor.tokenizer.decode(features.token_ids_T.tolist(), skip_special_tokens=False)
    assert text.startswith(
        "<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * 4 + "<|vision_end|>"
        f"<|vision_start|><0.2 seconds><|vision_start|>{pads}<|vision_end|>"
        f"<2.0 seconds><|vision_start|>{pads}<|vision_end|><|vision_end|>Add.<|im_end|>\n"
    )  # fmt: skip
    assert features.grid_thw_N3.tolist() == [[1, 4, 4], [2, 4, 4]] and features.grid_types_N.tolist() == [1, 2]
    assert features.patches_IC.shape == (16 + 2 * 16, 1536)
    last = normalised(features.patches_IC)[32:].reshape(16, 3, 2, 256)  # the third frame, repeated
    assert (last[:, :, 0] == last[:, :, 1]).all() and abs(last[0, 0, 0, 0] - (100 / 127.5 - 1)) < 1e-6
    assert features.token_ids_T.tolist() == oracle([("Add.", [frames[0]], [video])])["input_ids"][0].tolist()


def test_chosen_frames_agree_with_transformers():
    rng = np.random.default_rng(0)
    configs = [ProcessorConfig(), ProcessorConfig(video_fps=0.7, video_min_frames=1, video_max_frames=20)]
    for config in configs:
        processor = video_processor(config)
        for _ in range(400):
            total, fps = int(np.exp(rng.uniform(0, 11))), float(rng.choice([1, 10, 23.976, 25, 30, 60]))
            expected = processor.sample_frames(VideoMetadata(total_num_frames=total, fps=fps), fps=config.video_fps)
            np.testing.assert_array_equal(sample_indices(total, fps, config), expected)


def test_sizes_of_videos_agree_with_transformers():
    rng = np.random.default_rng(1)
    refused = 0
    for config in (ProcessorConfig(), ProcessorConfig(video_min_pixels=100_000, video_max_pixels=400_000)):
        for _ in range(1500):
            frames = int(rng.integers(1, 30))
            height, width = np.exp(rng.uniform(0, 8, 2)).astype(int).tolist()
            bounds = (config.video_min_pixels, config.video_max_pixels)
            try:
                expected = smart_resize(frames, height, width, 2, 32, *bounds)
            except ValueError:
                refused += 1
                with pytest.raises(ValueError, match=r"video: .*(at least 2|aspect ratio)"):
                    smart_resize_video(frames, height, width, config)
            else:
                assert smart_resize_video(frames, height, width, config) == expected
    assert 100 < refused < 1500


@pytest.mark.parametrize("frame_tokens", [None, 4])
@pytest.mark.parametrize("temporal", [2, 3])
def test_patches_of_videos_agree_with_transformers(frame_tokens, temporal):
    config = ProcessorConfig(temporal_patch_size=temporal, video_frame_tokens=frame_tokens, video_max_pixels=120_000)
    rng = np.random.default_rng(2)
    videos = [Video(list(_pixels(rng, count, *rng.integers(20, 200, 2))), 10.0) for count in (3, 4, 5, 8)]
    patches = joined(media_patches((), videos, config)[1], config)
    patches_IC, grid_thw_N3 = patches(), patches.grid_thw_N3
    expected = video_processor(config)(
        [np.stack(video.frames) for video in videos], do_sample_frames=False, return_tensors="np"
    )
    np.testing.assert_array_equal(grid_thw_N3, expected["video_grid_thw"])
    _check_pixels("videos", normalised(patches_IC), expected["pixel_values_videos"])
    if frame_tokens:
        assert (grid_thw_N3[:, 1:].prod(axis=1) <= 4 * frame_tokens).all()


def test_time_stamps_agree_with_transformers():
    rng = np.random.default_rng(3)
    for _ in range(300):
        count, fps = int(rng.integers(2, 20)), float(rng.choice([1, 3, 8, 10, 23.976, 25, 29.97, 30, 60]))
        indices = np.sort(rng.choice(5000, count, replace=False))
        expected = Qwen3VLProcessor._calculate_timestamps(None, indices, fps, 2)  # pyright: ignore[reportArgumentType]
        video = Video([np.zeros((1, 1, 3), np.uint8)] * count, fps, indices.tolist())
        found = time_stamps(video, ProcessorConfig())
        assert found == [f"<{seconds:.1f} seconds>" for seconds in expected] and len(found) == math.ceil(count / 2)


def test_published_video_limits(processor, saved_directory):
    """With the shipped limits, which the tiny processor of these tests does not have for images."""
    config = dataclasses.replace(processor.config, min_pixels=256 * 32 * 32, max_pixels=1280 * 32 * 32)
    wide = Processor(processor.tokenizer, processor.chat_template, config)
    rng = np.random.default_rng(4)
    sample = ("Add.", [_pixels(rng, 40, 60)], [Video(list(_pixels(rng, 5, 240, 320)), 2.0)])
    found, expected = wide.hf_inputs([sample]), Oracle(wide, saved_directory)([sample])
    np.testing.assert_array_equal(found["input_ids"], expected["input_ids"])
    assert found["image_grid_thw"].prod() >= 256 * 4 and found["video_grid_thw"].tolist() == [[3, 16, 20]]
    for name in ("pixel_values", "pixel_values_videos"):
        _check_pixels(name, found[name], expected[name])
