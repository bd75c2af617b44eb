"""Qwen3.5 configurations, read from a checkpoint's own `config.json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class UnsupportedConfigError(ValueError):
    """A `config.json` that this port cannot represent; the message names the key."""


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

    def __post_init__(self):
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
        """Groups of (interval - 1) linear layers and one full-attention layer."""
        return self.num_hidden_layers // self.full_attention_interval

    @property
    def num_linear(self) -> int:
        """Linear-attention layers in one group."""
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

    @property
    def patch_dim(self) -> int:
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def grid_side(self) -> int:
        """Side of the square table of learned position embeddings."""
        return round(self.num_position_embeddings**0.5)


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole Qwen3.5 vision-language model; hashable, so it is a static argument of compiled functions."""

    text: TextConfig
    vision: VisionConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    stop_token_ids: tuple[int, ...] = ()
    pad_token_id: int = 0


# What transformers itself ignores or what has one value in every published checkpoint.
_FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "attn_output_gate": True,
    "attention_dropout": 0.0,
}
_VISION_FIXED = {"hidden_act": "gelu_pytorch_tanh", "deepstack_visual_indexes": []}


def _check_fixed(section: Mapping[str, Any], fixed: Mapping[str, Any], where: str) -> None:
    for key, value in fixed.items():
        if section.get(key, value) != value:
            raise UnsupportedConfigError(f"{where}.{key}={section[key]!r} is not supported (only {value!r})")


def _interval(text: Mapping[str, Any]) -> int:
    """The full-attention interval, from its own key or from `layer_types`."""
    layer_types = text.get("layer_types")
    interval = text.get("full_attention_interval")
    if interval is None and layer_types:
        interval = layer_types.index("full_attention") + 1 if "full_attention" in layer_types else len(layer_types) + 1
    interval = int(interval or 4)
    expected = [
        "full_attention" if (layer + 1) % interval == 0 else "linear_attention"
        for layer in range(int(text["num_hidden_layers"]))
    ]
    if layer_types and list(layer_types) != expected:
        raise UnsupportedConfigError(f"layer_types {layer_types} are not a repetition of LLLF with interval {interval}")
    return interval


def _text_config(text: Mapping[str, Any], tied: bool) -> TextConfig:
    _check_fixed(text, _FIXED, "text_config")
    rope = dict(text.get("rope_parameters") or text.get("rope_scaling") or {})
    if rope.get("rope_type", "default") != "default":
        raise UnsupportedConfigError(f"rope_type={rope['rope_type']!r} is not supported (only 'default')")
    values = {field.name: text[field.name] for field in dataclasses.fields(TextConfig) if field.name in text}
    values |= {
        "full_attention_interval": _interval(text),
        "rope_theta": float(rope.get("rope_theta", text.get("rope_theta", 1e7))),
        "partial_rotary_factor": float(rope.get("partial_rotary_factor", text.get("partial_rotary_factor", 0.25))),
        "mrope_section": tuple(rope.get("mrope_section", (11, 11, 10))),
        "tie_word_embeddings": tied,
    }
    values.setdefault("rms_norm_eps", 1e-6)
    values.setdefault("linear_conv_kernel_dim", 4)
    missing = [field.name for field in dataclasses.fields(TextConfig) if field.name not in values]
    if missing:
        raise UnsupportedConfigError(f"text_config lacks {', '.join(missing)}")
    return TextConfig(**values)


def _vision_config(vision: Mapping[str, Any]) -> VisionConfig:
    _check_fixed(vision, _VISION_FIXED, "vision_config")
    defaults = {"in_channels": 3, "patch_size": 16, "temporal_patch_size": 2, "spatial_merge_size": 2}
    values = defaults | {
        field.name: vision[field.name] for field in dataclasses.fields(VisionConfig) if field.name in vision
    }
    missing = [field.name for field in dataclasses.fields(VisionConfig) if field.name not in values]
    if missing:
        raise UnsupportedConfigError(f"vision_config lacks {', '.join(missing)}")
    return VisionConfig(**values)


def from_dict(raw: Mapping[str, Any], stop_token_ids: tuple[int, ...] = (), pad_token_id: int | None = None) -> Config:
    """Build a `Config` from the parsed `config.json` of a Qwen3.5 vision-language checkpoint."""
    if "text_config" not in raw or "vision_config" not in raw:
        raise UnsupportedConfigError(
            "config.json has no text_config/vision_config: not a Qwen3.5 vision-language model"
        )
    text = raw["text_config"]
    tied = bool(raw.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))
    if not stop_token_ids:
        eos = text.get("eos_token_id", raw.get("eos_token_id"))
        stop_token_ids = tuple(eos) if isinstance(eos, list) else (eos,) if eos is not None else ()
    return Config(
        text=_text_config(text, tied),
        vision=_vision_config(raw["vision_config"]),
        image_token_id=raw["image_token_id"],
        video_token_id=raw["video_token_id"],
        vision_start_token_id=raw["vision_start_token_id"],
        vision_end_token_id=raw["vision_end_token_id"],
        stop_token_ids=stop_token_ids,
        pad_token_id=pad_token_id if pad_token_id is not None else min(stop_token_ids, default=0),
    )


def from_directory(directory: str | Path) -> Config:
    """Read `config.json`, and both stop ids from `generation_config.json` where there is one."""
    directory = Path(directory)
    path = directory / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: give a Hugging Face directory with config.json and *.safetensors")
    generation = directory / "generation_config.json"
    settings = json.loads(generation.read_text()) if generation.is_file() else {}
    eos = settings.get("eos_token_id")
    stop = tuple(eos) if isinstance(eos, list) else (eos,) if eos is not None else ()
    return from_dict(json.loads(path.read_text()), stop, settings.get("pad_token_id"))


def to_dict(config: Config, dtype: str) -> dict[str, Any]:
    """The `config.json` that transformers reads back to the same model."""
    text = dataclasses.asdict(config.text)
    rope = {key: text.pop(key) for key in ("rope_theta", "partial_rotary_factor")}
    rope |= {"rope_type": "default", "mrope_section": list(text.pop("mrope_section")), "mrope_interleaved": True}
    interval = text.pop("full_attention_interval")
    layer_types = [
        "full_attention" if (layer + 1) % interval == 0 else "linear_attention"
        for layer in range(config.text.num_hidden_layers)
    ]
    eos = config.stop_token_ids[0] if config.stop_token_ids else None
    text |= _FIXED | {
        "model_type": "qwen3_5_text",
        "rope_parameters": rope,
        "layer_types": layer_types,
        "eos_token_id": eos,
        "dtype": dtype,
    }
    vision = dataclasses.asdict(config.vision) | _VISION_FIXED | {"model_type": "qwen3_5_vision", "dtype": dtype}
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "dtype": dtype,
        "text_config": text,
        "vision_config": vision,
        "tie_word_embeddings": config.text.tie_word_embeddings,
        "image_token_id": config.image_token_id,
        "video_token_id": config.video_token_id,
        "vision_start_token_id": config.vision_start_token_id,
        "vision_end_token_id": config.vision_end_token_id,
    }
