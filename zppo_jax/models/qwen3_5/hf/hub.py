"""Finds a checkpoint: in a local directory, or in the local cache of the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from zppo_jax.processor import checkpoint

FILES = ("*.safetensors", "*.json", "*.jinja", "merges.txt")
"""Files that are downloaded: weights, configurations, tokenizer and chat template; no pickle and no code."""

NOT_THE_MODEL = ("*/*", "consolidated*", "adapter_model*")
"""Files that are excluded from these: folders, and weights other than the model's, which `reader` would not read."""


def resolve(name: str | Path) -> Path:
    """Returns the directory `name`, or the local snapshot of the Hub's repository OWNER/NAME, downloaded if necessary.

    Raises FileNotFoundError in one line if neither exists.
    """
    return checkpoint.resolve(name, FILES, NOT_THE_MODEL)
