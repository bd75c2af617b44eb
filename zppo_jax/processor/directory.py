"""The files of a checkpoint directory that concern the processor, in transformers' layout. No code in them is run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from zppo_jax.processor.config import ProcessorConfig
from zppo_jax.processor.tokenizer import END_OF_TEXT, IM_END

_BICUBIC = 3
_FRAME_TOKENS = 768  # transformers' default of max_video_tokens
_PATCHING = ("patch_size", "temporal_patch_size", "merge_size")
_PREPROCESSING = {
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "resample": _BICUBIC,
}
_SAMPLING = {"do_sample_frames": True, "num_frames": None}


def read_tokenizer(directory: Path) -> Tokenizer:
    """tokenizer.json. Raises ValueError, naming the directory, when it is missing or damaged."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ValueError(
            f"{directory} holds no tokenizer.json: copy it there from the checkpoint's repository, or write it with "
            "transformers.AutoTokenizer.from_pretrained(...).save_pretrained(directory)"
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises Exception itself
        raise ValueError(f"{path} is not a tokenizer file: {error}") from error


def read_chat_template(directory: Path) -> str:
    """chat_template.jinja or, in older layouts, the template inside a JSON file."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = _read_json(directory / name).get("chat_template")
        if isinstance(template, list):
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        if template:
            return template
    raise ValueError(f"{directory} holds no chat_template.jinja: copy it there from the checkpoint's repository")


def read_config(directory: Path) -> ProcessorConfig:
    """Patching and pixel bounds of images and videos.

    As in transformers, a nested processor_config.json goes before the older files of one processor each. Without a
    video processor the published values stand. Raises ValueError for a preprocessing that this package does not do.
    """
    image = _read_processor(directory, "image_processor", "preprocessor_config.json")
    video = _read_processor(directory, "video_processor", "video_preprocessor_config.json")
    if not image:
        raise ValueError(
            f"{directory} holds no preprocessor_config.json: copy it there from the checkpoint's repository"
        )
    _check(image, _PREPROCESSING, directory)
    patching = {name: image.get(name) or getattr(ProcessorConfig, name) for name in _PATCHING}
    _check(video, _PREPROCESSING | _SAMPLING | patching, directory)
    size, video_size = image.get("size") or {}, video.get("size") or {}
    capped = video.get("cap_pixels_per_frame")
    values = patching | {
        "min_pixels": image.get("min_pixels") or size.get("shortest_edge"),
        "max_pixels": image.get("max_pixels") or size.get("longest_edge"),
        "video_min_pixels": video_size.get("shortest_edge"),
        "video_max_pixels": video_size.get("longest_edge"),
        "video_fps": video.get("fps"),
        "video_min_frames": video.get("min_frames"),
        "video_max_frames": video.get("max_frames"),
        "video_frame_tokens": video.get("max_video_tokens", _FRAME_TOKENS) if capped else None,
    }
    given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    return ProcessorConfig(**given)


def read_stop_ids(directory: Path) -> tuple[int, ...]:
    """End ids of generation_config.json; empty without the file, as with the first small releases."""
    end = _read_json(directory / "generation_config.json").get("eos_token_id")
    return tuple(end) if isinstance(end, list) else () if end is None else (end,)


def write(
    directory: Path, tokenizer: Tokenizer, chat_template: str, config: ProcessorConfig, stop_ids: Sequence[int]
) -> None:
    """Writes what `read_*` and transformers' tokenizer, image and video processors read."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    pad_id = tokenizer.token_to_id(END_OF_TEXT)
    generation = {"bos_token_id": pad_id, "eos_token_id": list(stop_ids), "pad_token_id": pad_id}
    _write_json(directory / "generation_config.json", generation)
    _write_json(directory / "preprocessor_config.json", _image_content(config))
    _write_json(directory / "video_preprocessor_config.json", _video_content(config))
    (directory / "processor_config.json").unlink(missing_ok=True)  # of another processor: it would go before these
    tokenizer_content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": IM_END,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 262144,
    }
    _write_json(directory / "tokenizer_config.json", tokenizer_content)


def _image_content(config: ProcessorConfig) -> dict[str, Any]:
    size = {"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels}
    return _common_content(config) | {"image_processor_type": "Qwen2VLImageProcessor", "size": size}


def _video_content(config: ProcessorConfig) -> dict[str, Any]:
    return _common_content(config) | {
        "video_processor_type": "Qwen3VLVideoProcessor",
        "size": {"shortest_edge": config.video_min_pixels, "longest_edge": config.video_max_pixels},
        "do_sample_frames": True,
        "fps": config.video_fps,
        "min_frames": config.video_min_frames,
        "max_frames": config.video_max_frames,
        "cap_pixels_per_frame": config.video_frame_tokens is not None,
        "max_video_tokens": config.video_frame_tokens or _FRAME_TOKENS,
    }


def _common_content(config: ProcessorConfig) -> dict[str, Any]:
    fixed = {"processor_class": "Qwen3VLProcessor", "do_convert_rgb": True, "rescale_factor": 1 / 255}
    return fixed | _PREPROCESSING | {name: getattr(config, name) for name in _PATCHING}


def _read_processor(directory: Path, nested: str, name: str) -> dict[str, Any]:
    return _read_json(directory / "processor_config.json").get(nested) or _read_json(directory / name)


def _check(content: dict[str, Any], expected: dict[str, Any], directory: Path) -> None:
    for name, value in expected.items():
        found = content.get(name)
        if found is not None and found != value:
            kind = content.get("video_processor_type") or content.get("image_processor_type") or "preprocessor"
            raise ValueError(f"{directory}: {name} is {found} in the config of {kind}, but only {value} is supported")
    factor = content.get("rescale_factor")
    if factor is not None and abs(factor * 255 - 1) > 1e-3:
        raise ValueError(f"{directory}: rescale_factor is {factor} in the preprocessor's config, Qwen3.5 has 1/255")


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty when there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(content).__name__}")
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
