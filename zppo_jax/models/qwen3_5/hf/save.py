"""Writing a Hugging Face checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

from zppo_jax.models.qwen3_5 import config as configs
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.models.qwen3_5.hf.names import flatten, table
from zppo_jax.models.qwen3_5.layers import Params


def tensors(config: Config, params: Params) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint, by their names and in their layout there, each in the dtype of its leaf here."""
    flat = {path: np.asarray(jax.device_get(leaf)) for path, leaf in flatten(params).items()}
    return {entry.name: np.ascontiguousarray(entry.outward(flat[entry.path][entry.index])) for entry in table(config)}


def save_directory(directory: str | Path, config: Config, params: Params) -> None:
    """Write config.json, generation_config.json and model.safetensors so that transformers loads the model.

    The weights are written under a temporary name and renamed last, so an interrupted save never looks complete.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    out = tensors(config, params)
    dtype = str(out["model.language_model.embed_tokens.weight"].dtype)
    (directory / "config.json").write_text(json.dumps(configs.to_dict(config, dtype), indent=2) + "\n")
    stop = {"eos_token_id": list(config.stop_token_ids), "pad_token_id": config.pad_token_id}
    stop = stop if config.stop_token_ids else {}
    (directory / "generation_config.json").write_text(json.dumps(stop, indent=2) + "\n")
    temporary = directory / ".model.safetensors.partial"
    save_file(out, temporary, metadata={"format": "pt"})
    temporary.rename(directory / "model.safetensors")
