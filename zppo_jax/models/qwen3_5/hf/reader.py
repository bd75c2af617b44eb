"""The tensors of a checkpoint directory, mapped from their files: a value is read when it is used.

safetensors' NumPy reader copies every tensor and refuses float8, so the header (its length, then JSON: dtype, shape and
place of each tensor) is read here, and a tensor is a read-only view of the mapped file. Mapped pages belong to the
file: the kernel reclaims them when memory is short. Files are untrusted: every header is checked against the file's
size before anything is read, and no pickle is ever opened.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from zppo_jax.processor import json_files

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_SHARDS = "model[-.]*.safetensors"
"""The files of the model: those that the index names; without an index the single file; without that, all shards.

Other files next to them (an adapter, the weights in another program's layout, an optimiser's state) are not read.
"""

_MERGE = "which is an adapter and not a model: merge it into its base model (in peft merge_and_unload) and save that"
_PICKLED = "which is pickled and never loaded: give a directory with safetensors"
_NO_MODEL = {
    "adapter_model*": _MERGE,
    "adapter_config.json": _MERGE,
    "*.safetensors": f"which is not the name of a model's weights: give a directory with {SINGLE} or {INDEX}",
    "pytorch_model*": _PICKLED,
    "*.bin": _PICKLED,
    "*.pt": _PICKLED,
    "*.pth": _PICKLED,
}
"""Files that may be mistaken for a model, by name, with their meaning; an error names the first that exists."""

DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "U32": np.uint32,
    "I32": np.int32,
    "U64": np.uint64,
    "I64": np.int64,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}
"""safetensors' names of the element types that this reader knows."""

_MAX_HEADER = 100_000_000  # bytes; the safetensors library's limit
_MAX_VALUES = 500_000  # commas and brackets of a header; a model of 1,024 layers has 200,000
_MAX_DIMENSIONS = 8
_AGAIN = "download or write it again"


class CheckpointError(ValueError):
    """A checkpoint directory cannot be read, does not hold exactly this model, or cannot be written.

    The message names the file and the fix, or lists every mismatch.
    """


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a file, not yet read: `dtype` by safetensors' name, `start` in bytes from the file's beginning."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """The size of the tensor in the file."""
        return math.prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize

    def view(self) -> np.ndarray:
        """A read-only view of the mapped file."""
        if not self.nbytes:
            return np.empty(self.shape, DTYPES[self.dtype])
        return np.memmap(self.path, DTYPES[self.dtype], "r", self.start, self.shape).view(np.ndarray)


def tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of a directory by name, from the shards that its index names, or else from its single file.

    Raises FileNotFoundError for a missing file and CheckpointError for a damaged one; only headers are read.
    """
    weight_map = _weight_map(directory / INDEX)
    found: dict[str, Tensor] = {}
    for path in _files(directory, weight_map):
        for name, tensor in header(path).items():
            if name in found:
                raise CheckpointError(f"tensor {name} occurs in {found[name].path} and in {path}: remove one of them")
            found[name] = tensor
    if weight_map is not None:
        _check_agreement(directory, weight_map, found)
    return found


def header(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of one file. Raises CheckpointError, naming the file, if the header does not fit its size."""
    content, data_start = _read_header(path)
    content.pop("__metadata__", None)
    data_size = path.stat().st_size - data_start
    found, spans = {}, []
    for name, entry in content.items():
        tensor, end = _tensor(path, name, entry, data_start)
        found[name] = tensor
        spans.append((tensor.start - data_start, end))
    _check_spans(path, spans, data_size)
    return found


def metadata(path: Path) -> dict[str, Any]:
    """Reads the metadata that the writer of a file left in its header."""
    content = _read_header(path)[0].get("__metadata__")
    return content if isinstance(content, dict) else {}


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Reads the header; returns it and the start of the data, in bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise _damaged(path, f"its header says {length} bytes, the file has {size}")
        raw = file.read(length)
    if sum(map(raw.count, (b",", b"[", b"{"))) > _MAX_VALUES:  # before they become objects, each of which takes time
        raise _damaged(path, f"its header of {length} bytes holds more than {_MAX_VALUES} values")
    try:
        content = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not JSON, {str(error)[:100]}") from error
    if not isinstance(content, dict):
        raise _damaged(path, "its header is not a JSON object")
    return content, 8 + length


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name occurs twice")
    return content


def _tensor(path: Path, name: str, entry: Any, data_start: int) -> tuple[Tensor, int]:
    """Parses one entry of a header; returns the tensor, and the end of its data relative to the start of all data."""
    fields = entry if isinstance(entry, Mapping) else {}
    dtype, shape, offsets = fields.get("dtype"), _naturals(fields.get("shape")), _naturals(fields.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2:
        raise _damaged(path, f"the entry of {name[:200]} is {reprlib.repr(entry)}")
    if dtype not in DTYPES:
        raise CheckpointError(f"{path}: {name} has dtype {dtype[:20]!r}, which is not supported ({', '.join(DTYPES)})")
    tensor = Tensor(path, dtype, shape, data_start + offsets[0])
    if offsets[1] - offsets[0] != tensor.nbytes:
        size = f"{offsets[1] - offsets[0]} bytes, not {tensor.nbytes}"
        raise _damaged(path, f"{name[:200]} of {dtype} {list(shape)} has {size}")
    return tensor, offsets[1]


def _naturals(value: Any) -> tuple[int, ...] | None:
    """A short list of natural numbers (no larger than positions in a file can be); None for anything else."""
    if not isinstance(value, list) or len(value) > _MAX_DIMENSIONS:
        return None
    return tuple(value) if all(type(item) is int and 0 <= item < 2**63 for item in value) else None


def _check_spans(path: Path, spans: list[tuple[int, int]], data_size: int) -> None:
    """Checks that the tensors are contiguous and end where the file ends, as the format requires."""
    reached = 0
    for start, end in sorted(spans):
        if start != reached:
            raise _damaged(path, f"its tensors overlap or leave a gap at byte {min(start, reached)} of the data")
        reached = end
    if reached != data_size:
        raise _damaged(path, f"its tensors need {reached} bytes of data, it has {data_size}")


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged or cut short ({reason}): {_AGAIN}")


# ---------------------------------------------------------------- the choice of files


def _files(directory: Path, weight_map: Mapping[str, str] | None) -> list[Path]:
    if weight_map is not None:
        paths = [directory / name for name in sorted(set(weight_map.values()))]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise FileNotFoundError(f"{directory} lacks {', '.join(missing)}, which {INDEX} names: {_AGAIN}")
        return paths
    single = directory / SINGLE
    paths = [single] if single.is_file() else sorted(directory.glob(_SHARDS))
    if not paths:
        raise FileNotFoundError(f"no {SINGLE} in {directory}{_instead(directory)}")
    return paths


def _instead(directory: Path) -> str:
    """A hint for a directory without a model: what it holds instead, and the fix."""
    names = sorted(path.name for path in directory.iterdir())
    found = {kind: next((name for name in names if fnmatch.fnmatchcase(name, kind)), None) for kind in _NO_MODEL}
    for kind, name in found.items():
        if name is not None:
            return f" but {name}, {_NO_MODEL[kind]}"
    return ": give a Hugging Face directory that has it"


def _weight_map(index: Path) -> dict[str, str] | None:
    """Reads tensor name -> shard from an index file; None if there is none. Its paths may not leave the directory."""
    if not index.is_file():
        return None
    try:
        weight_map = json_files.read_object(index).get("weight_map")
    except ValueError as error:
        raise CheckpointError(f"{index} is damaged ({error}): {_AGAIN}") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} is damaged (its weight_map names no tensor): {_AGAIN}")
    for name in weight_map.values():
        if not isinstance(name, str) or not name.endswith(".safetensors") or Path(name).name != name:
            raise CheckpointError(
                f"{index}: shard name {reprlib.repr(name)} is not a safetensors file or leaves the directory; "
                "damaged or hostile"
            )
    return weight_map


def _check_agreement(directory: Path, weight_map: Mapping[str, str], found: Mapping[str, Tensor]) -> None:
    """Checks that an index and its shards are from one export: both must give the same file for each tensor."""
    names = sorted(weight_map.keys() | found.keys())
    there = {name: found[name].path.name for name in found}
    wrong = [name for name in names if weight_map.get(name) != there.get(name)]
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{directory / INDEX} and its shards disagree on {len(wrong)} tensors: {name} is in {there.get(name)}, the "
            f"index says {weight_map.get(name)}; they are of different exports, {_AGAIN}"
        )
