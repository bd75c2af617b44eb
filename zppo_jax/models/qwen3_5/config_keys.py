"""The keys of a `config.json` other than the model's sizes: keys with one supported value, keys without a meaning here,
and all others, which are reported.
"""

from __future__ import annotations

import dataclasses
import functools
import reprlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from zppo_jax.processor import ProcessorConfig, json_files

_MAX_SIZE = 2**24
_RANGES = {
    "num_hidden_layers": (1, 1024),
    "depth": (1, 1024),
    "linear_conv_kernel_dim": (1, 64),
    "patch_size": (1, 256),
    "temporal_patch_size": (1, 8),
    "spatial_merge_size": (1, 16),
    "rms_norm_eps": (1e-12, 0.1),
    "rope_theta": (1.0, 1e12),
    "partial_rotary_factor": (1e-3, 1.0),
}
"""The least and the most of each number of a file; 1 to 2^24 if it is not listed. A number outside is damage or an
attack: it could ask for a table of 10^9 layers, or give an angle or a norm of NaN."""


class UnsupportedConfigError(ValueError):
    """This port cannot represent a `config.json`; the message names the key."""


MODEL_TYPES = {"": ("qwen3_5",), "text_config": ("qwen3_5_text",), "vision_config": ("qwen3_5_vision", "qwen3_5")}
"""`model_type` by section; the first spelling is written. The vision tower's has two spellings in published files."""

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
"""Keys by section that have one value in every published checkpoint; another value means another model."""

IGNORED = {
    "architectures": "the class of transformers; `model_type` says which model it is",
    "auto_map": "code next to the weights, which is never run",
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
    "id2label": "in every transformers config; this model has no classes",
    "label2id": "in every transformers config; this model has no classes",
    "problem_type": "in every transformers config; this model has no classes",
    "mamba_ssm_dtype": "the recurrent state is float32 whatever the dtype",
    "mlp_only_layers": "of the mixture-of-experts sister; transformers ignores it as well",
    "output_gate_type": "the output gate is a sigmoid; transformers ignores it as well",
    "mtp_num_hidden_layers": "the multi-token prediction head is not loaded",
    "mtp_use_dedicated_embeddings": "the multi-token prediction head is not loaded",
    "bos_token_id": "the chat template writes all tokens",
}
"""Keys that are ignored in every section, with the reason."""


def check_model_type(section: Mapping[str, Any], name: str) -> None:
    """Refuses the file of another model; a section may omit its `model_type`."""
    found = section.get("model_type", MODEL_TYPES[name][0])
    if found not in MODEL_TYPES[name]:
        text_only = "; this is the language model alone" if found == "qwen3_5_text" else ""
        raise UnsupportedConfigError(
            f"{_at(name, 'model_type')}={reprlib.repr(found)} is not a dense Qwen3.5 vision-language model "
            f"({' or '.join(MODEL_TYPES[name])}){text_only}"
        )


def check_fixed(section: Mapping[str, Any], name: str) -> None:
    """Refuses a value other than that of every published checkpoint."""
    for key, value in FIXED[name].items():
        if section.get(key, value) != value:
            raise UnsupportedConfigError(
                f"{_at(name, key)}={reprlib.repr(section[key])} is not supported (only {value!r})"
            )


def check_numbers(config: Any, where: str) -> None:
    """Refuses sizes that are not positive whole numbers, factors that are not numbers, and values out of range."""
    for field in dataclasses.fields(config):
        value, kind = getattr(config, field.name), str(field.type)
        if kind not in ("int", "float"):
            continue
        low, high = _RANGES.get(field.name, (1, _MAX_SIZE))
        right = isinstance(value, int if kind == "int" else int | float) and not isinstance(value, bool)
        if not right or not value > 0:
            raise UnsupportedConfigError(f"{where}.{field.name}={reprlib.repr(value)} is not a positive {kind}")
        if not low <= value <= high:
            shown = reprlib.repr(value)
            raise UnsupportedConfigError(f"{where}.{field.name}={shown} is not between {low:g} and {high:g}")


def section(content: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    """The object at a key, empty if the key is absent. Raises UnsupportedConfigError for any other value."""
    value = content.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise UnsupportedConfigError(f"{_at(where, key)}={reprlib.repr(value)} is not an object")
    return value or {}


def token_ids(value: Any, where: str) -> tuple[int, ...]:
    """Token ids, given as null, one id or a list."""
    try:
        return json_files.token_ids(value, where)
    except ValueError as error:
        raise UnsupportedConfigError(str(error)) from error


def check_processor(vision: Any, processor: ProcessorConfig) -> None:
    """Refuses a preprocessor whose patches do not fit a model's vision tower."""
    for ours, theirs in (
        ("patch_size", "patch_size"),
        ("temporal_patch_size", "temporal_patch_size"),
        ("spatial_merge_size", "merge_size"),
    ):
        there, here = getattr(vision, ours), getattr(processor, theirs)
        if there != here:
            raise UnsupportedConfigError(
                f"vision_config.{ours}={there} in config.json, but {theirs}={here} in preprocessor_config.json: they "
                "are of different checkpoints"
            )


def unknown(section: Mapping[str, Any], name: str, read: Collection[str]) -> list[str]:
    """The keys of a section that are neither read nor on the list of ignored keys."""
    known = {"model_type", *FIXED[name], *IGNORED, *read}
    return [_at(name, key) for key in section if key not in known]


@functools.lru_cache(maxsize=16)
def report(unknown_keys: tuple[str, ...]) -> None:
    """Warns once of keys without a meaning here: one that changes the model must not be ignored silently."""
    if unknown_keys:
        logging.warning("config.json has keys that this port does not follow: %s", ", ".join(unknown_keys))


def read_json(path: Path) -> dict[str, Any]:
    """Reads the object in a JSON file. Raises UnsupportedConfigError, naming the file, if it holds something else."""
    try:
        return json_files.read_object(path)
    except ValueError as error:
        raise UnsupportedConfigError(str(error)) from error


def _at(section: str, key: str) -> str:
    return f"{section}.{key}" if section else key
