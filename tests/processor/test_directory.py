"""The files of a checkpoint directory: ours, older layouts, and those that transformers writes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from zppo_jax.processor import Processor, ProcessorConfig

GREY = np.full((64, 96, 3), 128, np.uint8)


@pytest.fixture
def directory(saved_directory, tmp_path):
    return shutil.copytree(saved_directory, tmp_path / "checkpoint")


def _edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_overrides(directory):
    processor = Processor.from_directory(directory, max_pixels=2048, enable_thinking=False)
    assert processor.config == ProcessorConfig(min_pixels=1024, max_pixels=2048, enable_thinking=False)
    assert processor.response_prefix == "" and Processor.from_directory(directory).response_prefix == "<think>\n"


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "preprocessor_config.json"])
def test_a_missing_file_is_named_with_its_directory(directory, name):
    (directory / name).unlink()
    with pytest.raises(ValueError, match=f"checkpoint holds no {name}.*copy it"):
        Processor.from_directory(directory)


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json", "generation_config.json"])
def test_a_damaged_file_is_named(directory, name):
    (directory / name).write_text("[")
    with pytest.raises(ValueError, match=name):
        Processor.from_directory(directory)


def test_generation_config_is_optional_and_adds_stop_ids(directory, processor):
    _edit(directory / "generation_config.json", eos_token_id=7)
    other = Processor.from_directory(directory)
    assert other.stop_ids == (*processor.stop_ids, 7) and other.decode([7]) == "" != processor.decode([7])
    (directory / "generation_config.json").unlink()
    assert Processor.from_directory(directory).stop_ids == processor.stop_ids


def test_the_template_of_older_layouts(directory, processor):
    template = (directory / "chat_template.jinja").read_text()
    (directory / "chat_template.jinja").unlink()
    (directory / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert Processor.from_directory(directory).chat_template == processor.chat_template
    (directory / "chat_template.json").unlink()
    _edit(directory / "tokenizer_config.json", chat_template=template)
    assert Processor.from_directory(directory).chat_template == processor.chat_template


def test_the_first_small_releases(directory, processor):
    """Without generation_config.json transformers stops on <|endoftext|> alone and runs past the turn."""
    for name in ("generation_config.json", "video_preprocessor_config.json", "tokenizer_config.json"):
        (directory / name).unlink()
    other = Processor.from_directory(directory)
    assert other.stop_ids == processor.stop_ids and len(other.stop_ids) == 2 and other.config == processor.config


def test_video_settings_are_kept(directory, processor):
    settings = {"video_max_pixels": 10**6, "video_fps": 1.5, "video_max_frames": 9, "video_frame_tokens": 40}
    Processor.from_directory(directory, **settings).save(directory)
    assert Processor.from_directory(directory).config == dataclasses.replace(processor.config, **settings)


def test_transformers_reads_the_saved_image_and_video_processors(directory, processor):
    pytest.importorskip("torch")
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    image = Qwen2VLImageProcessorPil.from_pretrained(directory)
    assert dict(image.size) == {"shortest_edge": 1024, "longest_edge": 16384} and image.patch_size == 16
    np.testing.assert_array_equal(image(GREY, return_tensors="np")["image_grid_thw"], [[1, 4, 6]])
    video: Any = Qwen3VLVideoProcessor.from_pretrained(directory)
    assert dict(video.size) == {"shortest_edge": 4096, "longest_edge": 25_165_824} and [*video.image_mean] == [0.5] * 3
    assert (video.fps, video.min_frames, video.max_frames, video.cap_pixels_per_frame) == (2.0, 4, 768, False)


def test_a_nested_config_goes_first_as_in_transformers(directory):
    nested = {
        "image_processor": {"size": {"shortest_edge": 2048, "longest_edge": 8192}, "patch_size": 16},
        "video_processor": {"size": {"shortest_edge": 5000, "longest_edge": 9000}, "fps": 4, "max_frames": 10},
    }
    (directory / "processor_config.json").write_text(json.dumps(nested))
    processor = Processor.from_directory(directory)
    assert processor.config == ProcessorConfig(
        min_pixels=2048,
        max_pixels=8192,
        video_min_pixels=5000,
        video_max_pixels=9000,
        video_fps=4,
        video_max_frames=10,
    )
    processor.save(directory)
    assert Processor.from_directory(directory).config == processor.config


def _with_size(directory, **content):
    """The configuration from an image preprocessor's file with these keys instead of `size`."""
    path = directory / "preprocessor_config.json"
    kept = {name: value for name, value in json.loads(path.read_text()).items() if name != "size"}
    path.write_text(json.dumps(kept | content))
    config = Processor.from_directory(directory).config
    return config.min_pixels, config.max_pixels


@pytest.mark.parametrize(
    "content",
    [
        {"size": {"shortest_edge": 2048, "longest_edge": 8192}},
        {"size": {"min_pixels": 2048, "max_pixels": 8192}},
        {"min_pixels": 2048, "max_pixels": 8192},
        {"size": {"shortest_edge": 1024, "longest_edge": 8192}, "min_pixels": 2048},
        {"size": {"min_pixels": 1, "max_pixels": 9}, "min_pixels": 2048, "max_pixels": 8192},
        {"size": {"shortest_edge": 2048}, "max_pixels": 8192},
    ],
)
def test_every_spelling_of_the_pixel_bounds_is_read(content, directory):
    assert _with_size(directory, **content) == (2048, 8192)
    theirs = dict(Qwen2VLImageProcessorPil.from_pretrained(directory).size)
    spellings = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}  # it keeps that of the file
    assert {spellings.get(name, name): value for name, value in theirs.items()} == {
        "shortest_edge": 2048,
        "longest_edge": 8192,
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"size": {"height": 64, "width": 64}}, "size is .*height.* can only be"),
        ({"size": {"shortest_edge": 1, "longest_edge": 9, "min_pixels": 1}}, "can only be"),
        ({"size": 4096}, "size is 4096"),
        ({"size": [1]}, r"size is \[1\]"),
        ({"size": "x"}, "size is 'x'"),
        ({"size": {"shortest_edge": 2048}}, "one only .2048.: give both"),
        ({"min_pixels": 2048}, "one only"),
        ({"max_pixels": 2048}, "one only"),
    ],
)
def test_another_size_is_refused(content, words, directory):
    with pytest.raises(ValueError, match=f"preprocessor_config.json: .*{words}"):
        _with_size(directory, **content)


@pytest.mark.parametrize(
    "size", [{"min_pixels": 5000, "max_pixels": 9000}, {"shortest_edge": 5000, "longest_edge": 9000}]
)
def test_both_spellings_of_the_pixel_bounds_of_videos(size, directory):
    _edit(directory / "video_preprocessor_config.json", size=size)
    config = Processor.from_directory(directory).config
    assert (config.video_min_pixels, config.video_max_pixels) == (5000, 9000)


@pytest.mark.parametrize(
    "change", [{"patch_size": 14}, {"num_frames": 8}, {"do_sample_frames": False}, {"image_std": [0.2, 0.2, 0.2]}]
)
def test_another_video_preprocessing_is_refused(directory, change):
    _edit(directory / "video_preprocessor_config.json", **change)
    with pytest.raises(ValueError, match=f"{next(iter(change))} is .* in the config of Qwen3VLVideoProcessor"):
        Processor.from_directory(directory)


def test_older_layouts(directory, processor):
    template = (directory / "chat_template.jinja").read_text()
    (directory / "chat_template.jinja").unlink()
    _edit(directory / "tokenizer_config.json", chat_template=[{"name": "default", "template": template}])
    content = json.loads((directory / "preprocessor_config.json").read_text())
    (directory / "preprocessor_config.json").unlink()
    (directory / "processor_config.json").write_text(json.dumps({"image_processor": content}))
    assert Processor.from_directory(directory).config == processor.config


def test_a_directory_written_by_transformers(saved_directory, processor, tmp_path):
    AutoTokenizer.from_pretrained(saved_directory).save_pretrained(tmp_path)
    size = {"shortest_edge": 1024, "longest_edge": 16384}
    image_processor = Qwen2VLImageProcessorPil(
        size=size, patch_size=16, temporal_patch_size=2, merge_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    image_processor.save_pretrained(tmp_path)
    other = Processor.from_directory(tmp_path)
    assert other.config == processor.config and other.stop_ids == processor.stop_ids
    text = "The \\boxed{ <think>"
    expected = processor.features(text, [GREY])
    np.testing.assert_array_equal(other.features(text, [GREY]).token_ids_T, expected.token_ids_T)


@pytest.mark.parametrize("change", [{"image_mean": [0.48, 0.46, 0.41]}, {"resample": 2}, {"rescale_factor": 1.0}])
def test_another_preprocessing_is_refused(directory, change):
    _edit(directory / "preprocessor_config.json", **change)
    with pytest.raises(ValueError, match=next(iter(change))):
        Processor.from_directory(directory)


def test_a_template_that_ignores_thinking_is_refused(directory):
    path = directory / "chat_template.jinja"
    path.write_text(path.read_text().replace("enable_thinking is false", "false"))
    assert Processor.from_directory(directory).response_prefix == "<think>\n"
    with pytest.raises(ValueError, match="enable_thinking=False"):
        Processor.from_directory(directory, enable_thinking=False)
