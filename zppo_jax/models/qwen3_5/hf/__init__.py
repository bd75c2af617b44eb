"""Hugging Face checkpoints <-> parameter trees: one table of names (`names`), used by `load` and `save`.

`hub` finds a checkpoint's directory, `reader` maps its files, `quantization` undoes block-wise FP8.
"""

from __future__ import annotations

from zppo_jax.models.qwen3_5.hf.hub import resolve
from zppo_jax.models.qwen3_5.hf.load import (
    abstract_params,
    float8_kernels,
    load_params,
    published_float8_kernels,
)
from zppo_jax.models.qwen3_5.hf.names import table
from zppo_jax.models.qwen3_5.hf.reader import CheckpointError
from zppo_jax.models.qwen3_5.hf.save import save_directory, staged, tensors, write_model

__all__ = [
    "CheckpointError",
    "abstract_params",
    "float8_kernels",
    "load_params",
    "published_float8_kernels",
    "resolve",
    "save_directory",
    "staged",
    "table",
    "tensors",
    "write_model",
]
