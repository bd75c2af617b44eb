"""Hugging Face checkpoints <-> parameter trees: one table of names (`names`), used by `load` and `save`."""

from __future__ import annotations

from zppo_jax.models.qwen3_5.hf.load import CheckpointError, load_params
from zppo_jax.models.qwen3_5.hf.names import count, flatten, table, unflatten
from zppo_jax.models.qwen3_5.hf.save import save_directory, tensors

__all__ = ["CheckpointError", "count", "flatten", "load_params", "save_directory", "table", "tensors", "unflatten"]
