"""What a `config.json` may say beside the model's sizes: keys of one supported value, keys without a meaning here, and
everything else, which is reported.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from absl import logging

_MAX_LAYERS = 1024  # a damaged or hostile file shall not make us build tables of 10^9 layers


class UnsupportedConfigError(ValueError):
    """A `config.json` that this port cannot represent; the message names the key."""


MODEL_TYPES = {"": ("qwen3_5",), "text_config": ("qwen3_5_text",), "vision_config": ("qwen3_5_vision", "qwen3_5")}
"""`model_type` by section; the first is written. The vision tower's has two spellings in published files."""

FIXED: dict[str, dict[str, Any]] = {
    "": {},
    "text_config": {
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_output_gate": True,
    },
    "vision_config": {
        "hidden_act": "gelu_pytorch_tanh",
        "deepstack_visual_indexes": [],
    },
}
"""Keys by section that have one value in every published checkpoint; another value is another model."""

IGNORED = {
    "architectures": "the class of transformers; `model_type` says which model it is",
    "auto_map": "code beside the weights, which is never run",
    "_name_or_path": "where the file came from",
    "transformers_version": "who wrote the file",
    "dtype": "of the file; the caller says which dtype the parameters get",
    "torch_dtype": "older spelling of dtype",
    "language_model_only": "how another program serves the model",
    "initializer_range": "of training from nothing; the weights are there",
    "use_cache": "how transformers runs the model",
    "output_attentions": "how transformers runs the model",
    "output_hidden_states": "how transformers runs the model",
    "return_dict": "how transformers runs the model",
    "chunk_size_feed_forward": "how transformers runs the model",
    "is_encoder_decoder": "of every transformers config; never true here",
    "id2label": "of every transformers config; there are no classes",
    "label2id": "of every transformers config; there are no classes",
    "problem_type": "of every transformers config; there are no classes",
    "mamba_ssm_dtype": "the recurrent state is float32 whatever the dtype",
    "mlp_only_layers": "of the mixture-of-experts sister; transformers ignores it as well",
    "output_gate_type": "the output gate is a sigmoid; transformers ignores it as well",
    "mtp_num_hidden_layers": "the multi-token prediction head is not loaded",
    "mtp_use_dedicated_embeddings": "the multi-token prediction head is not loaded",
    "bos_token_id": "the chat template writes all tokens",
}
"""Keys that are passed over in every section, with the reason."""


def check_model_type(section: Mapping[str, Any], name: str) -> None:
    """Refuses the file of another model; a section may leave its `model_type` out."""
    found = section.get("model_type", MODEL_TYPES[name][0])
    if found not in MODEL_TYPES[name]:
        text_only = "; this is the language model alone" if found == "qwen3_5_text" else ""
        raise UnsupportedConfigError(
            f"{_at(name, 'model_type')}={found!r} is not a dense Qwen3.5 vision-language model "
            f"({' or '.join(MODEL_TYPES[name])}){text_only}"
        )


def check_fixed(section: Mapping[str, Any], name: str) -> None:
    """Refuses a value that is not the one of every published checkpoint."""
    for key, value in FIXED[name].items():
        if section.get(key, value) != value:
            raise UnsupportedConfigError(f"{_at(name, key)}={section[key]!r} is not supported (only {value!r})")


def check_numbers(config: Any, where: str) -> None:
    """Refuses sizes that are no positive whole numbers, and factors that are no positive numbers."""
    for field in dataclasses.fields(config):
        value, kind = getattr(config, field.name), str(field.type)
        whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
        real = whole or (isinstance(value, float) and math.isfinite(value) and value > 0)
        if (kind == "int" and not whole) or (kind == "float" and not real):
            raise UnsupportedConfigError(f"{where}.{field.name}={value!r} is no positive {kind}")
        if field.name in ("num_hidden_layers", "depth") and value > _MAX_LAYERS:
            raise UnsupportedConfigError(f"{where}.{field.name}={value} layers are more than {_MAX_LAYERS}")


def unknown(section: Mapping[str, Any], name: str, read: Collection[str]) -> list[str]:
    """The keys of a section that nobody reads and nobody decided to ignore."""
    known = {"model_type", *FIXED[name], *IGNORED, *read}
    return [_at(name, key) for key in section if key not in known]


@functools.lru_cache(maxsize=16)
def report(unknown_keys: tuple[str, ...]) -> None:
    """Warns once of keys without a meaning here: one that changes the model must not be passed over in silence."""
    if unknown_keys:
        logging.warning("config.json has keys that this port does not follow: %s", ", ".join(unknown_keys))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UnsupportedConfigError, naming the file, when it holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnsupportedConfigError(f"{path} is not JSON ({error}): download it again") from error
    if not isinstance(content, dict):
        raise UnsupportedConfigError(f"{path} must hold a JSON object, not {type(content).__name__}")
    return content


def _at(section: str, key: str) -> str:
    return f"{section}.{key}" if section else key
