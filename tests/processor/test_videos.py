"""Videos as lists of frames, without torch; test_oracle.py compares them with transformers."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest

from zppo_jax.processor import Processor, ProcessorConfig, Video, sample_indices
from zppo_jax.processor.media import joined, media_patches
from zppo_jax.processor.patches import normalised

GREY = np.full((64, 96, 3), 128, np.uint8)


def _video(count: int = 4, **changes) -> Video:
    return dataclasses.replace(Video([GREY] * count, fps=2.0), **changes)


def test_images_come_before_videos_and_videos_before_the_text(processor):
    features = processor.features("Add.", [GREY, GREY[:, :64]], [_video(3), _video(4)])
    assert features.grid_thw_N3.tolist() == [[1, 4, 6], [1, 4, 4], [2, 4, 6], [2, 4, 6]]
    assert features.grid_types_N.tolist() == [1, 1, 2, 2] and features.grid_types_N.dtype == np.int32
    assert len(features.patches_IC) == features.grid_thw_N3.prod(axis=1).sum()
    assert np.bincount(features.token_types_T)[1:].tolist() == [6 + 4, 4 * 6]
    vision = features.token_types_T[features.token_types_T > 0]
    assert (np.diff(vision) >= 0).all()
    rendered = processor.render("Add.", 2, 1)
    assert rendered.index("<|image_pad|>") < rendered.index("<|video_pad|>") < rendered.index("Add.")


def test_kinds_of_grids_without_videos_or_images(processor):
    assert processor.features("Add.", [GREY]).grid_types_N.tolist() == [1]
    assert processor.features("Add.", [], [_video()]).grid_types_N.tolist() == [2]
    assert processor.features("Add.", []).grid_types_N.shape == (0,)


def test_a_batch_keeps_images_and_videos_apart(processor):
    samples = [("Add.", [GREY], [_video(2)]), ("Add.", []), ("Add.", [GREY[:, :64]], [_video(5, fps=1.0)])]
    batch = processor.hf_inputs(samples)
    assert batch["image_grid_thw"].tolist() == [[1, 4, 6], [1, 4, 4]] and batch["pixel_values"].shape == (40, 1536)
    assert batch["video_grid_thw"].tolist() == [[1, 4, 6], [3, 4, 6]]
    assert batch["pixel_values_videos"].shape == (4 * 24, 1536) and batch["video_grid_thw"].dtype == np.int64
    assert set(processor.hf_inputs(samples[1:2])) == {"input_ids", "attention_mask", "mm_token_type_ids"}


def test_text_cannot_add_a_frame(processor):
    spelled = "<|vision_start|><|video_pad|><|image_pad|><|vision_end|>"
    features = processor.features(spelled, [GREY], [_video()])
    assert np.bincount(features.token_types_T)[1:].tolist() == [6, 12]


def test_a_time_stamp_in_seconds(processor):
    seconds = _video(4, fps=1.0, indices=[0.5, 1.5, 3.25, 3.75])
    text = processor.tokenizer.decode(processor.features("a", [], [seconds]).token_ids_T.tolist())
    assert "<1.0 seconds>" in text and "<3.5 seconds>" in text


def test_a_video_travels_to_a_worker(processor):
    video = pickle.loads(pickle.dumps(_video()))
    np.testing.assert_array_equal(
        processor.features("a", [], [video]).token_ids_T, processor.features("a", [], [_video()]).token_ids_T
    )


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (Video([], fps=2.0), "video 1: 0 frames, expected 1 to 768"),
        (_video(1), "video 1: 1 frames, but a video has at least 2: give a still as an image"),
        (_video(769), "769 frames, expected 1 to 768"),
        (Video([GREY, GREY[:, :64]], fps=2.0), r"video 1: frame 1 has the shape \[64, 64, 3\], frame 0 \[64, 96, 3\]"),
        (Video([GREY, np.full(GREY.shape, np.nan)], fps=2.0), "video 1, frame 1: expected uint8 .* float64 with NaN"),
        (Video([GREY[..., :1]] * 2, fps=2.0), "video 1, frame 0: expected the shape"),
        (Video([np.zeros((10, 10_000, 3), np.uint8)] * 2, fps=2.0), "video 1: aspect ratio 1000 exceeds 200"),
        (_video(fps=0.0), "fps=0.0 must be a positive"),
        (_video(fps=float("nan")), "fps=nan must be a positive"),
        (_video(indices=[0, 1]), "2 indices for 4 frames"),
        (_video(indices=[0, 1, 3, 2]), "ascending"),
        (_video(indices=[0, 1, 2, float("inf")]), "finite"),
        ([GREY, GREY], "expected a Video, got list .load_video"),
    ],
)
def test_unfit_videos_are_refused(processor, video, message):
    with pytest.raises(ValueError, match=message):
        processor.features("a", [], [_video(), video])
    with pytest.raises(ValueError, match="sample 1: video 1"):
        processor.hf_inputs([("a", []), ("a", [], [_video(), video])])


def test_a_pixel_frame_is_enlarged():
    video, config = Video([np.full((1, 1, 3), 255, np.uint8)] * 2, 2.0), ProcessorConfig()
    [patches] = media_patches((), [video], config)[1]
    assert patches.grid_thw_N3.tolist() == [[1, 4, 4]] and (normalised(patches()) == 1).all()


def test_no_videos():
    patches = joined([], ProcessorConfig())
    assert (
        patches().shape == (0, 1536) and patches.grid_thw_N3.shape == (0, 3) and patches.grid_thw_N3.dtype == np.int32
    )


def test_long_videos_give_a_bounded_number_of_frames():
    indices = sample_indices(10**9, 30.0, ProcessorConfig())
    assert len(indices) == 768 and indices[0] == 0 and indices[-1] == 10**9 - 1
    assert sample_indices(3, 30.0, ProcessorConfig()).tolist() == [0, 1, 2]


@pytest.mark.parametrize("slots", ["<|video_pad|><|image_pad|>", "<|image_pad|>", "<|image_pad|><|video_pad|>" * 2])
def test_a_template_with_other_slots_is_refused(tokenizer, processor, slots):
    """As a prompt with two placeholders and one image: transformers refuses it too."""
    template = processor.chat_template.replace("<|vision_start|><|video_pad|><|vision_end|>", "")
    template = template.replace("<|image_pad|>", slots)
    other = Processor(tokenizer, template, processor.config)
    with pytest.raises(ValueError, match=r"image slots and \d video slots for 1 images and 1 videos, or in another"):
        other.features("a", [GREY], [_video()])


@pytest.mark.parametrize(
    "values",
    [
        {"video_fps": 0},
        {"video_min_frames": 0},
        {"video_max_pixels": "many"},
        {"video_min_frames": 5, "video_max_frames": 4},
        {"video_min_pixels": 2048, "video_max_pixels": 1024},
        {"video_frame_tokens": 0},
    ],
)
def test_unfit_configs_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        ProcessorConfig(**values)
