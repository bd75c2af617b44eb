"""The files of a checkpoint directory that concern the processor, in transformers' layout. No code in them is run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from zppo_jax.processor.images import ProcessorConfig
from zppo_jax.processor.tokenizer import END_OF_TEXT, IM_END

_BICUBIC = 3


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
    """Patching and pixel bounds. Raises ValueError for an image preprocessing that this package does not do."""
    content = _read_json(directory / "preprocessor_config.json")
    content = content or _read_json(directory / "processor_config.json").get("image_processor", {})
    if not content:
        raise ValueError(
            f"{directory} holds no preprocessor_config.json: copy it there from the checkpoint's repository"
        )
    _check_normalisation(content, directory)
    size = content.get("size") or {}
    bounds = {
        "min_pixels": content.get("min_pixels") or size.get("shortest_edge"),
        "max_pixels": content.get("max_pixels") or size.get("longest_edge"),
    }
    sizes = {name: content.get(name) for name in ("patch_size", "temporal_patch_size", "merge_size")}
    given: dict[str, Any] = {name: int(value) for name, value in {**bounds, **sizes}.items() if value is not None}
    return ProcessorConfig(**given)


def read_stop_ids(directory: Path) -> tuple[int, ...]:
    """End ids of generation_config.json; empty without the file, as with the first small releases."""
    end = _read_json(directory / "generation_config.json").get("eos_token_id")
    return tuple(end) if isinstance(end, list) else () if end is None else (end,)


def write(
    directory: Path, tokenizer: Tokenizer, chat_template: str, config: ProcessorConfig, stop_ids: Sequence[int]
) -> None:
    """Writes what `read_*` and transformers' AutoTokenizer read."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    pad_id = tokenizer.token_to_id(END_OF_TEXT)
    generation = {"bos_token_id": pad_id, "eos_token_id": list(stop_ids), "pad_token_id": pad_id}
    _write_json(directory / "generation_config.json", generation)
    _write_json(directory / "preprocessor_config.json", _preprocessor_content(config))
    tokenizer_content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": IM_END,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 262144,
    }
    _write_json(directory / "tokenizer_config.json", tokenizer_content)


def _preprocessor_content(config: ProcessorConfig) -> dict[str, Any]:
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": _BICUBIC,
        "size": {"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "patch_size": config.patch_size,
        "temporal_patch_size": config.temporal_patch_size,
        "merge_size": config.merge_size,
    }


def _check_normalisation(content: dict[str, Any], directory: Path) -> None:
    expected = {
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "resample": _BICUBIC,
    }
    for name, value in expected.items():
        found = content.get(name)
        if found is not None and found != value:
            raise ValueError(f"{directory}: {name} is {found} in the preprocessor's config, Qwen3.5 has {value}")
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
