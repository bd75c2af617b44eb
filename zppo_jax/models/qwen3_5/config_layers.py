"""Reads from the `text_config` of a config.json which layers are linear, and the settings of the rotary embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zppo_jax.models.qwen3_5 import config_keys as keys
from zppo_jax.models.qwen3_5.config_keys import UnsupportedConfigError


def layer_types_of(num_layers: int, interval: int) -> list[str]:
    """The kinds of all layers, as transformers writes them."""
    return ["linear_attention" if (layer + 1) % interval else "full_attention" for layer in range(num_layers)]


def interval_of(text: Mapping[str, Any]) -> int:
    """The full-attention interval, from its own key or from `layer_types`; if both are given, they must agree."""
    layer_types, interval = text.get("layer_types"), text.get("full_attention_interval")
    if interval is not None and (type(interval) is not int or interval < 1):
        raise UnsupportedConfigError(f"text_config.full_attention_interval={interval!r} is not a positive int")
    if layer_types is None:
        return interval or 4
    if not isinstance(layer_types, list) or len(layer_types) != text.get("num_hidden_layers"):
        raise UnsupportedConfigError(
            f"layer_types of {text.get('num_hidden_layers')!r} layers must be a list as long, not {layer_types!r}"
        )
    if interval is None:
        interval = layer_types.index("full_attention") + 1 if "full_attention" in layer_types else len(layer_types) + 1
    if layer_types != layer_types_of(len(layer_types), interval):
        raise UnsupportedConfigError(f"layer_types {layer_types} are not a repetition of LLLF with interval {interval}")
    return interval


ROPE = {
    "rope_type": "default",
    "mrope_interleaved": True,
}


def rope_of(text: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary embedding's part of `TextConfig`, from `rope_parameters` or the older keys."""
    rope = keys.section(text, "rope_parameters", "text_config") or keys.section(text, "rope_scaling", "text_config")
    for key, value in ROPE.items():
        if rope.get(key, value) != value:
            raise UnsupportedConfigError(f"text_config {key}={rope[key]!r} is not supported (only {value!r})")
    theta = rope.get("rope_theta", text.get("rope_theta"))
    if theta is None:  # transformers would use 10,000, but every published file says 10,000,000
        raise UnsupportedConfigError("text_config lacks rope_parameters.rope_theta")
    section = rope.get("mrope_section", [11, 11, 10])
    if not isinstance(section, list) or [type(size) for size in section] != [int] * 3 or min(section) < 1:
        raise UnsupportedConfigError(f"text_config mrope_section={section!r} must be three positive whole numbers")
    return {
        "rope_theta": theta,
        "partial_rotary_factor": rope.get("partial_rotary_factor", text.get("partial_rotary_factor", 0.25)),
        "mrope_section": tuple(section),
    }
