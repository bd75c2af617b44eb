"""Reading a Hugging Face checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from zppo_jax.models.qwen3_5 import vlm
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.models.qwen3_5.hf.names import IGNORED, KEPT_FLOAT32, flatten, table, unflatten
from zppo_jax.models.qwen3_5.layers import Params


class CheckpointError(ValueError):
    """A checkpoint that does not hold exactly this model; the message lists every mismatch."""


def _indexed_names(index: Path) -> list[str]:
    """The shards that an index names. It comes from elsewhere, so neither its form nor its paths are trusted."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is damaged ({error!r}): download it again") from error
    if not names:
        raise CheckpointError(f"{index} names no shard: download it again")
    for name in names:
        if not isinstance(name, str) or not name.endswith(".safetensors") or Path(name).name != name:
            raise CheckpointError(
                f"{index}: shard name {name!r} is no safetensors file or leaves the directory; damaged or hostile"
            )
    return names


def _shards(directory: Path) -> list[Path]:
    """The safetensors files, from the index where there is one; paths in an index may not leave the directory."""
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        files = sorted(directory.glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"no *.safetensors in {directory}: give a Hugging Face checkpoint directory")
        return files
    names = _indexed_names(index)
    for name in names:
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory / name} is missing, but {index.name} names it: download it again")
    return [directory / name for name in names]


def _tensors(directory: Path) -> Iterator[tuple[str, np.ndarray]]:
    for path in _shards(directory):
        try:
            with safe_open(path, framework="numpy") as shard:
                for name in shard.keys():  # noqa: SIM118 - safe_open is no mapping
                    yield name, shard.get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged or cut short ({error}): download or write it again") from error


def load_params(directory: str | Path, config: Config, dtype: str) -> Params:
    """Read every parameter exactly once, as NumPy arrays of `dtype`; all mismatches are raised together."""
    shapes = {path: leaf.shape for path, leaf in flatten(vlm.abstract_params(config)).items()}
    flat = {path: np.zeros(shape, jnp.dtype(dtype)) for path, shape in shapes.items()}
    wanted = {entry.name: entry for entry in table(config)}
    problems, seen = [], set()
    for name, tensor in _tensors(Path(directory)):
        if name.startswith(IGNORED) or (name == "lm_head.weight" and config.text.tie_word_embeddings):
            continue
        if name not in wanted:
            problems.append(f"unknown tensor {name} {list(tensor.shape)}")
            continue
        if name in seen:
            problems.append(f"tensor {name} occurs in more than one file")
        entry = wanted[name]
        if tensor.shape != entry.shape_there:
            problems.append(
                f"{name}: {list(tensor.shape)} does not fit {entry.path}{list(entry.index)} {list(entry.shape_there)}"
            )
        else:
            if entry.path in KEPT_FLOAT32 and tensor.dtype == np.float32:
                flat[entry.path] = flat[entry.path].astype(np.float32, copy=False)
            flat[entry.path][entry.index] = entry.inward(tensor)
        seen.add(name)
    problems += [f"missing tensor {name}" for name in wanted if name not in seen]
    if problems:
        raise CheckpointError(f"{directory} does not match its config.json:\n  " + "\n  ".join(problems))
    return unflatten(flat)
