"""Writes a Hugging Face checkpoint that transformers, vLLM and lm-eval load.

Everything is written into a hidden directory next to the target, which is renamed into place at the end: a directory
with the target's name is always complete. Tensors are fetched layer by layer, and at most one shard's are in memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import itertools
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from zppo_jax.models.qwen3_5 import config as configs
from zppo_jax.models.qwen3_5 import quantised
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.models.qwen3_5.hf import reader
from zppo_jax.models.qwen3_5.hf.names import KEPT_FLOAT32, Entry, stack_of, table
from zppo_jax.models.qwen3_5.hf.reader import CheckpointError
from zppo_jax.models.qwen3_5.parameters import Params, flatten

SHARD_BYTES = 5 * 10**9
_WRITER = {"format": "pt", "writer": "zppo_jax"}
"""The metadata of every file: transformers requires `format`; `writer` says that the file may be replaced."""


def save_directory(
    directory: str | Path,
    config: Config,
    params: Params,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write config.json, generation_config.json and the weights as a directory that transformers loads.

    Args:
      directory: the target; it must not exist, be empty, or hold an earlier save, which is then replaced as a whole.
      config: the model's configuration.
      params: arrays that this process can address wholly, whatever their sharding.
      dtype: of the files; None for each parameter's dtype. `A_log` and the gated norm's weight are always float32, as
        in the published files (a file of transformers in pure bfloat16 comes back with these two in float32).
      shard_bytes: a larger checkpoint is written as several files with an index.

    Raises:
      CheckpointError: in one line; the directory holds something else, or cannot be written (disk full, permissions).
    """
    with staged(Path(directory)) as path:
        write_model(path, config, params, dtype, shard_bytes)


def write_model(
    directory: Path,
    config: Config,
    params: Params,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    on_tensor: Callable[[np.ndarray], None] = lambda tensor: None,
) -> None:
    """Write the files of `save_directory` into an existing directory; `on_tensor` is called with each tensor."""
    quantised.require_plain(params, "cannot be saved")
    leaves = flatten(params)
    sizes = {entry.name: _nbytes(entry, leaves[entry.path], dtype) for entry in table(config)}
    _require_space(directory, sum(sizes.values()))
    model_dtype = str(_dtype("text/embed", leaves["text/embed"], dtype))
    _write_json(directory / "config.json", configs.to_dict(config, model_dtype))
    if config.stop_token_ids:
        generation = {"eos_token_id": list(config.stop_token_ids), "pad_token_id": config.pad_token_id}
        _write_json(directory / "generation_config.json", generation)
    shards, arrays = _shards(sizes, shard_bytes), iterate(config, params, dtype)
    files = [_file_name(number, len(shards)) for number in range(len(shards))]
    for file, names in zip(files, shards, strict=True):
        part: dict[str, np.ndarray] = {}
        for name, array in itertools.islice(arrays, len(names)):
            part[name] = array
            on_tensor(array)
        save_file(part, directory / file, metadata=_WRITER)
        shutil.copymode(directory / "config.json", directory / file)  # safetensors lets no other user read its files
        del part, array  # before the next one is gathered
    if len(shards) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        _write_json(directory / reader.INDEX, index)


# ---------------------------------------------------------------- tensors


def iterate(config: Config, params: Params, dtype: str | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, value) of every tensor in the checkpoint's layout, fetched from the devices layer by layer."""
    stacks: dict[str, dict[str, Any]] = {}
    for path, leaf in flatten(params).items():
        stacks.setdefault(stack_of(path), {})[path] = leaf
    for (stack, index), entries in itertools.groupby(table(config), lambda entry: (stack_of(entry.path), entry.index)):
        layer = _layer(stacks[stack], tuple(np.int32(each) for each in index)) if stack else stacks[stack]
        for entry in entries:
            value = np.asarray(layer.pop(entry.path))  # an array keeps its host copy until it is deleted
            kind = _dtype(entry.path, value, dtype)
            yield entry.name, np.ascontiguousarray(entry.outward(value).astype(kind, copy=False))


def tensors(config: Config, params: Params, dtype: str | None = None) -> dict[str, np.ndarray]:
    """Return all tensors of `iterate` at once."""
    return dict(iterate(config, params, dtype))


@jax.jit
def _layer(stack: dict[str, jax.Array], index: tuple[jax.Array, ...]) -> dict[str, jax.Array]:
    for place in index:
        stack = {path: jax.lax.dynamic_index_in_dim(leaf, place, keepdims=False) for path, leaf in stack.items()}
    return stack


def _dtype(path: str, leaf: Any, dtype: str | None) -> Any:
    return jnp.dtype(np.float32 if path in KEPT_FLOAT32 else dtype or leaf.dtype)


def _nbytes(entry: Entry, leaf: Any, dtype: str | None) -> int:
    return math.prod(entry.shape) * _dtype(entry.path, leaf, dtype).itemsize


def _shards(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Names by file, in order; a tensor that is larger than the limit gets a separate file."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def _file_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors"


# ---------------------------------------------------------------- directories


@contextlib.contextmanager
def staged(directory: Path) -> Iterator[Path]:
    """Make a directory to write into, which becomes `directory` if the block succeeds and is deleted otherwise.

    Raises CheckpointError in one line for a target that holds something else, and for errors of the disk.
    """
    target = directory.absolute() if not directory.is_symlink() else directory.resolve()
    staging = target.with_name(f".{target.name}.partial-{secrets.token_hex(4)}")
    try:
        _require_replaceable(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        staging.mkdir()
        with _locked(staging):
            yield staging
            _sync(staging)
            _move_into_place(staging, target)
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise CheckpointError(
            f"{directory} cannot be written ({' '.join(reason.split())[:200]}): free some space or choose another place"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _require_replaceable(target: Path) -> None:
    """Raise CheckpointError unless this module wrote the target: a published checkpoint has the same file names."""
    if not target.exists():
        return
    if not target.is_dir():
        raise CheckpointError(f"{target} is a file: choose a directory")
    if not any(target.iterdir()):
        return
    if not _is_ours(target):
        raise CheckpointError(f"{target} holds files that zppo_jax did not write: choose a new directory, or empty it")


def _is_ours(directory: Path) -> bool:
    weights = list(directory.glob("*.safetensors"))
    try:
        return bool(weights) and all(reader.metadata(path) == _WRITER for path in weights)
    except CheckpointError:
        return False


def _require_space(directory: Path, needed: int) -> None:
    """Raise CheckpointError before hours of writing end on a full disk."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise CheckpointError(
            f"the weights need {needed / 1e9:.1f} GB, {directory.parent} has {free / 1e9:.1f} GB left: free some space"
        )


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the kernel's lock on a directory, which a killed process releases."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _sweep(target: Path) -> None:
    """Remove what killed processes left of the same target; the directory of a running one is locked."""
    for left in target.parent.glob(glob.escape(f".{target.name}.partial-") + "*"):
        with contextlib.suppress(OSError), _locked(left):
            shutil.rmtree(left)


def _sync(directory: Path) -> None:
    """Flush a directory's files to disk before it is renamed."""
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _move_into_place(staging: Path, target: Path) -> None:
    if not target.exists():
        staging.rename(target)
        return
    old = staging.with_name(f"{staging.name}-old")
    target.rename(old)
    staging.rename(target)
    shutil.rmtree(old)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
