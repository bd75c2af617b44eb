"""The published sizes of Qwen3.5 by name, for use without a checkpoint: shapes, memory, shardings, tests.

    sizes.get("9B")

To load a checkpoint, its own `config.json` is used.
"""

from __future__ import annotations

from typing import Any

from zppo_jax.models.qwen3_5.config import Config, TextConfig, VisionConfig

_TEXT: dict[str, Any] = {
    "vocab_size": 248320,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e7,
    "partial_rotary_factor": 0.25,
    "mrope_section": (11, 11, 10),
    "max_position_embeddings": 262144,
}
_VISION: dict[str, Any] = {
    "in_channels": 3,
    "patch_size": 16,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "num_position_embeddings": 2304,
}
_TOKENS: dict[str, Any] = {
    "image_token_id": 248056,
    "video_token_id": 248057,
    "vision_start_token_id": 248053,
    "vision_end_token_id": 248054,
    "stop_token_ids": (248046, 248044),  # <|im_end|>, <|endoftext|>
    "pad_token_id": 248044,
}

_SMALL_VISION = {
    "depth": 12,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_heads": 12,
}
_MEDIUM_VISION = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
}
_LARGE_VISION = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
}


def _config(text: dict[str, Any], vision: dict[str, Any]) -> Config:
    return Config(
        text=TextConfig(**_TEXT, **text),
        vision=VisionConfig(**_VISION, **vision, out_hidden_size=text["hidden_size"]),
        **_TOKENS,
    )


SIZES = {
    "0.8B": _config(
        {
            "hidden_size": 1024,
            "intermediate_size": 3584,
            "num_hidden_layers": 24,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "linear_num_value_heads": 16,
            "tie_word_embeddings": True,
        },
        _SMALL_VISION,
    ),
    "2B": _config(
        {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 24,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "linear_num_value_heads": 16,
            "tie_word_embeddings": True,
        },
        _MEDIUM_VISION,
    ),
    "4B": _config(
        {
            "hidden_size": 2560,
            "intermediate_size": 9216,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "linear_num_value_heads": 32,
            "tie_word_embeddings": True,
        },
        _MEDIUM_VISION,
    ),
    "9B": _config(
        {
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "linear_num_value_heads": 32,
            "tie_word_embeddings": False,
        },
        _LARGE_VISION,
    ),
    "27B": _config(
        {
            "hidden_size": 5120,
            "intermediate_size": 17408,
            "num_hidden_layers": 64,
            "num_attention_heads": 24,
            "num_key_value_heads": 4,
            "linear_num_value_heads": 48,
            "tie_word_embeddings": False,
        },
        _LARGE_VISION,
    ),
}


def get(name: str) -> Config:
    """The configuration of a published size. Raises ValueError, listing the names, for any other name."""
    if name not in SIZES:
        raise ValueError(f"there is no size {name!r}: give one of {', '.join(SIZES)}")
    return SIZES[name]
