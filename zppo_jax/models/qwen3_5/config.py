"""Qwen3.5 configurations, read from a checkpoint's `config.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zppo_jax.models.qwen3_5 import config_keys as keys
from zppo_jax.models.qwen3_5 import config_layers as layers
from zppo_jax.models.qwen3_5.config_keys import UnsupportedConfigError
from zppo_jax.processor.json_files import explained

__all__ = ["Config", "TextConfig", "UnsupportedConfigError", "VisionConfig", "from_dict", "from_directory", "to_dict"]


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The language model. Names follow the checkpoint's `text_config`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    linear_num_key_heads: int
    linear_num_value_heads: int
    linear_key_head_dim: int
    linear_value_head_dim: int
    linear_conv_kernel_dim: int
    full_attention_interval: int
    rms_norm_eps: float
    rope_theta: float
    partial_rotary_factor: float
    mrope_section: tuple[int, int, int]
    tie_word_embeddings: bool
    max_position_embeddings: int = 262144
    """Not a limit here; kept because vLLM reads its longest context from it."""

    def __post_init__(self):
        keys.check_numbers(self, "text_config")
        if self.num_hidden_layers % self.full_attention_interval:
            raise UnsupportedConfigError(
                f"num_hidden_layers={self.num_hidden_layers} is not a multiple of "
                f"full_attention_interval={self.full_attention_interval}; only whole LLLF groups are supported"
            )
        if sum(self.mrope_section) * 2 != self.rotary_dim:
            raise UnsupportedConfigError(
                f"mrope_section={list(self.mrope_section)} must add up to half the rotary dimension {self.rotary_dim}"
            )
        for heads, per in (
            (self.num_attention_heads, self.num_key_value_heads),
            (self.linear_num_value_heads, self.linear_num_key_heads),
        ):
            if heads % per:
                raise UnsupportedConfigError(f"{heads} heads cannot share {per} key heads evenly")

    @property
    def num_groups(self) -> int:
        """The number of groups of (interval - 1) linear layers and one full-attention layer."""
        return self.num_hidden_layers // self.full_attention_interval

    @property
    def num_linear(self) -> int:
        """The number of linear-attention layers in one group."""
        return self.full_attention_interval - 1

    @property
    def rotary_dim(self) -> int:
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def key_dim(self) -> int:
        return self.linear_num_key_heads * self.linear_key_head_dim

    @property
    def value_dim(self) -> int:
        return self.linear_num_value_heads * self.linear_value_head_dim

    @property
    def conv_dim(self) -> int:
        return 2 * self.key_dim + self.value_dim


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower. Names follow the checkpoint's `vision_config`."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    num_position_embeddings: int
    out_hidden_size: int

    def __post_init__(self):
        keys.check_numbers(self, "vision_config")
        if self.hidden_size % self.num_heads:
            raise UnsupportedConfigError(
                f"vision_config.hidden_size={self.hidden_size} is not a multiple of num_heads={self.num_heads}"
            )
        if self.hidden_size // self.num_heads % 4:
            raise UnsupportedConfigError(
                f"vision_config: heads of {self.hidden_size // self.num_heads} are not a multiple of 4, which rows and "
                "columns need"
            )
        if self.grid_side**2 != self.num_position_embeddings:
            raise UnsupportedConfigError(
                f"vision_config.num_position_embeddings={self.num_position_embeddings} is not the square of a side"
            )

    @property
    def patch_dim(self) -> int:
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def grid_side(self) -> int:
        """The side of the square table of learned position embeddings."""
        return round(self.num_position_embeddings**0.5)


_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole Qwen3.5 vision-language model; hashable, so it is a static argument of compiled functions.

    `stop_token_ids` are those of the files: both of `generation_config.json`, or, without that file (the first small
    releases had none), the one of `config.json`, which alone lets a response run past the end of its turn. Code that
    generates stops on `Processor.stop_ids`: these, and always `<|im_end|>` and `<|endoftext|>` of the tokenizer.
    """

    text: TextConfig
    vision: VisionConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    stop_token_ids: tuple[int, ...] = ()
    pad_token_id: int = 0

    def __post_init__(self):
        if self.vision.out_hidden_size != self.text.hidden_size:
            raise UnsupportedConfigError(
                f"vision_config.out_hidden_size={self.vision.out_hidden_size} is not "
                f"text_config.hidden_size={self.text.hidden_size}"
            )


def _fields(section: Mapping[str, Any], kind: type, name: str, values: dict[str, Any]) -> dict[str, Any]:
    """The fields of a section's dataclass: `values`, the file's values of the others, and its defaults."""
    keys.check_model_type(section, name)
    keys.check_fixed(section, name)
    fields = dataclasses.fields(kind)
    found = {field.name: section[field.name] for field in fields if field.name in section} | values
    missing = [field.name for field in fields if field.name not in found and field.default is dataclasses.MISSING]
    if missing:
        raise UnsupportedConfigError(f"{name} lacks {', '.join(missing)}")
    return found


def _text_config(text: Mapping[str, Any], tied: bool) -> TextConfig:
    defaults = {"rms_norm_eps": 1e-6, "linear_conv_kernel_dim": 4}
    values = {name: text.get(name, default) for name, default in defaults.items()}
    values |= layers.rope_of(text) | {"full_attention_interval": layers.interval_of(text), "tie_word_embeddings": tied}
    return TextConfig(**_fields(text, TextConfig, "text_config", values))


def _vision_config(vision: Mapping[str, Any]) -> VisionConfig:
    defaults = {"in_channels": 3, "patch_size": 16, "temporal_patch_size": 2, "spatial_merge_size": 2}
    rope = keys.section(vision, "rope_parameters", "vision_config")
    if rope.get("rope_theta", 10000.0) != 10000.0 or rope.get("rope_type", "axial") not in ("axial", "default"):
        raise UnsupportedConfigError(f"vision_config.rope_parameters={rope} is not supported (axial, theta 10000)")
    values = {name: vision.get(name, default) for name, default in defaults.items()}
    return VisionConfig(**_fields(vision, VisionConfig, "vision_config", values))


def _tied(raw: Mapping[str, Any]) -> bool:
    """Whether the head is the embedding: the file's top-level key takes precedence over its text_config's."""
    tied = raw.get("tie_word_embeddings", raw["text_config"].get("tie_word_embeddings"))
    if tied is not None and not isinstance(tied, bool):
        raise UnsupportedConfigError(f"tie_word_embeddings={tied!r} is not true or false")
    return bool(tied)


_READ_TEXT = ("layer_types", "rope_parameters", "rope_scaling", "eos_token_id", "pad_token_id")
_READ_TOP = ("text_config", "vision_config", "tie_word_embeddings", "eos_token_id", "pad_token_id", *_TOKENS)


def _unknown(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """All keys of a file that are neither read nor on the list of ignored keys."""
    text, vision = ([field.name for field in dataclasses.fields(kind)] for kind in (TextConfig, VisionConfig))
    return (
        *keys.unknown(raw, "", (*_READ_TOP, "quantization_config")),
        *keys.unknown(raw["text_config"], "text_config", (*text, *_READ_TEXT)),
        *keys.unknown(raw["vision_config"], "vision_config", (*vision, "rope_parameters")),
    )


def from_dict(raw: Mapping[str, Any], stop_token_ids: tuple[int, ...] = (), pad_token_id: int | None = None) -> Config:
    """Build a `Config` from the parsed `config.json` of a Qwen3.5 vision-language checkpoint.

    Raises UnsupportedConfigError, naming the key, for another model; warns of unknown keys. The file's
    `quantization_config` describes the weights in the files, not the model: see `hf.quantization`.
    """
    keys.check_model_type(raw, "")
    if not all(isinstance(raw.get(section), Mapping) for section in ("text_config", "vision_config")):
        raise UnsupportedConfigError(
            "config.json has no text_config/vision_config: not a Qwen3.5 vision-language model"
        )
    missing = [name for name in _TOKENS if raw.get(name) is None]
    if missing:
        raise UnsupportedConfigError(f"config.json lacks {', '.join(missing)} (token ids)")
    text = raw["text_config"]
    stop_token_ids = stop_token_ids or keys.token_ids(text.get("eos_token_id", raw.get("eos_token_id")), "eos_token_id")
    if pad_token_id is None:
        pad_token_id = text.get("pad_token_id", raw.get("pad_token_id"))
    if pad_token_id is not None:
        (pad_token_id,) = keys.token_ids([pad_token_id], "pad_token_id")
    config = Config(
        text=_text_config(text, _tied(raw)),
        vision=_vision_config(raw["vision_config"]),
        stop_token_ids=stop_token_ids,
        pad_token_id=pad_token_id if pad_token_id is not None else min(stop_token_ids, default=0),
        **{name: raw[name] for name in _TOKENS},
    )
    _check_tokens(config)
    keys.report(_unknown(raw))
    return config


def _check_tokens(config: Config) -> None:
    for name in _TOKENS:
        token = getattr(config, name)
        if type(token) is not int or not 0 <= token < config.text.vocab_size:
            raise UnsupportedConfigError(f"{name}={token!r} is not one of the {config.text.vocab_size} tokens")


def from_directory(directory: str | Path) -> Config:
    """Read `config.json`, and both stop ids from `generation_config.json` if it exists."""
    directory = Path(directory)
    path = directory / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: give a Hugging Face directory with config.json and *.safetensors")
    generation = directory / "generation_config.json"
    settings = keys.read_json(generation) if generation.is_file() else {}
    with explained(directory):
        stop_ids = keys.token_ids(settings.get("eos_token_id"), f"{generation}: eos_token_id")
        return from_dict(keys.read_json(path), stop_ids, settings.get("pad_token_id"))


def to_dict(config: Config, dtype: str) -> dict[str, Any]:
    """Make the `config.json` that transformers, vLLM and `from_dict` read back to the same model."""
    text = dataclasses.asdict(config.text)
    rope = {key: text.pop(key) for key in ("rope_theta", "partial_rotary_factor")} | layers.ROPE
    rope["mrope_section"] = list(text.pop("mrope_section"))
    text |= keys.FIXED["text_config"] | {
        "model_type": keys.MODEL_TYPES["text_config"][0],
        "rope_parameters": rope,
        "layer_types": layers.layer_types_of(config.text.num_hidden_layers, config.text.full_attention_interval),
        "mamba_ssm_dtype": "float32",
        "eos_token_id": list(config.stop_token_ids) or None,
        "pad_token_id": config.pad_token_id,
        "dtype": dtype,
    }
    vision = dataclasses.asdict(config.vision) | keys.FIXED["vision_config"]
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": keys.MODEL_TYPES[""][0],
        "dtype": dtype,
        "text_config": text,
        "vision_config": vision | {"model_type": keys.MODEL_TYPES["vision_config"][0], "dtype": dtype},
        "tie_word_embeddings": config.text.tie_word_embeddings,
        **{name: getattr(config, name) for name in _TOKENS},
    }
