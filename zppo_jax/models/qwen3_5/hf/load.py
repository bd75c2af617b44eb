"""Reads a Hugging Face checkpoint directly into (sharded) parameters.

First the headers of all files are compared with the configuration: all mismatches are raised together, before anything
is allocated. Then the parameters are filled in place, layer by layer: besides them, memory holds one layer and the
current tensor. Each device's slice is cut from the mapped file first and cast afterwards.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zppo_jax.models.qwen3_5 import quantised as quantised_kernels
from zppo_jax.models.qwen3_5 import vlm
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.models.qwen3_5.hf import quantization, reader
from zppo_jax.models.qwen3_5.hf.finite import all_finite
from zppo_jax.models.qwen3_5.hf.names import IGNORED, KEPT_FLOAT32, STACKS, Entry, stack_of, table
from zppo_jax.models.qwen3_5.hf.quantization import FLOAT8, FLOAT8_KEPT, SCALE, Quantization
from zppo_jax.models.qwen3_5.hf.reader import CheckpointError, Tensor
from zppo_jax.models.qwen3_5.parameters import Params, flatten, unflatten

_TILE_ROWS = 64
_FLOATS = ("F16", "BF16", "F32", "F64")
Leaves = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Source:
    """The source of a parameter: its tensor, and its scales if it is quantised."""

    tensor: Tensor
    scale: Tensor | None

    @property
    def nbytes(self) -> int:
        """The size of the parameter in the files."""
        return self.tensor.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def read(self) -> np.ndarray:
        """Reads the value in the checkpoint's layout; a view of the file unless it is quantised."""
        value = self.tensor.view()
        return value if self.scale is None else quantization.dequantise(value, self.scale.view())


class _Progress:
    """Reports how much has been read; `sizes` are the bytes of all tensors."""

    def __init__(self, report: Callable[[str], None] | None, sizes: list[int]) -> None:
        self._report, self._count, self._total = report, len(sizes), sum(sizes)
        self._tensors = self._bytes = 0

    def next(self, source: Source) -> Source:
        """Reports the progress, and returns `source`, which is read next."""
        if self._report:
            size = f"{self._bytes / 1e9:.2f} of {self._total / 1e9:.2f} GB"
            self._report(f"{self._tensors} of {self._count} tensors, {size} read")
        self._tensors, self._bytes = self._tensors + 1, self._bytes + source.nbytes
        return source


def load_params(
    directory: str | Path,
    config: Config,
    dtype: str,
    shardings: Params | None = None,
    report: Callable[[str], None] | None = None,
    float8: frozenset[str] = frozenset(),
) -> Params:
    """Loads the parameters of a checkpoint directory as arrays of `dtype`.

    Args:
      directory: a directory with config.json and *.safetensors.
      config: the model's configuration, usually the directory's.
      dtype: of all parameters but `A_log` and the gated norm's weight, which are float32 as in published files.
      shardings: a NamedSharding for each parameter, in a tree like the parameters'; None for the default device.
      report: gets a line of progress before each tensor.
      float8: the paths of kernels that stay float8, with their scales beside them (`float8_kernels`).

    Raises:
      FileNotFoundError: a file is missing.
      CheckpointError: files are damaged, or do not hold exactly this model (listing every mismatch), or a value is NaN
        or infinite.
    """
    directory = Path(directory)
    found = reader.tensors(directory)
    entries = list(table(config))
    sources = _match(directory, config, entries, found)
    placements = flatten(shardings) if shardings is not None else {}
    progress = _Progress(report, [sources[entry.name].nbytes for entry in entries])
    abstract = flatten(abstract_params(config, dtype, float8))
    stacks = _empty_stacks(abstract, placements)
    leaves: Leaves = {}
    for (stack, index), group in itertools.groupby(entries, lambda entry: (stack_of(entry.path), entry.index)):
        values = {
            path: _array(entry, file, value, abstract[path].dtype, placements.get(path))
            for entry in group
            for file, path, value in _read(entry, progress.next(sources[entry.name]), float8)
        }
        if stack:
            stacks[stack] = _place(stacks[stack], values, index, placements)
        else:
            leaves |= values
        del values  # before the next layer is read
    return unflatten(leaves | {path: leaf for stack in stacks.values() for path, leaf in stack.items()})


def abstract_params(config: Config, dtype: str, float8: frozenset[str] = frozenset()) -> Params:
    """The shapes and dtypes of the parameters that `load_params` returns."""
    leaves = {
        path: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(np.float32 if path in KEPT_FLOAT32 else dtype))
        for path, leaf in flatten(vlm.abstract_params(config)).items()
    }
    for entry in table(config) if float8 else ():
        if entry.path in float8:
            stack = leaves[entry.path].shape[: len(entry.index)]
            scale = (*stack, *quantization.scale_shape_here(entry))
            leaves[entry.path] = jax.ShapeDtypeStruct((*stack, *entry.shape), quantised_kernels.DTYPE)
            leaves[quantised_kernels.scale_of(entry.path)] = jax.ShapeDtypeStruct(scale, jnp.float32)
    return unflatten(leaves)


def float8_kernels(directory: Path, config: Config) -> frozenset[str]:
    """The paths of the kernels that a directory holds in float8, in all of their layers."""
    found = reader.tensors(directory)
    return quantization.float8_kernels(
        table(config), lambda name: name in found and found[name].dtype == FLOAT8_KEPT and name + SCALE in found
    )


def published_float8_kernels(config: Config) -> frozenset[str]:
    """The same for the published -FP8 checkpoint of a size, without its files."""
    return quantization.float8_kernels(table(config), quantization.PUBLISHED.applies_to)


# ---------------------------------------------------------------- matching tensors and parameters


def _match(directory: Path, config: Config, entries: list[Entry], found: Mapping[str, Tensor]) -> dict[str, Source]:
    """The source of every parameter by its name there; raises CheckpointError with all mismatches."""
    ignored = IGNORED if not config.text.tie_word_embeddings else (*IGNORED, "lm_head.")
    rest = {name: tensor for name, tensor in found.items() if not name.startswith(ignored)}
    quantised = quantization.read(directory)
    sources, problems = {}, []
    for entry in entries:
        tensor = rest.pop(entry.name, None)
        if tensor is None:
            problems.append(f"missing tensor {entry.name} {list(entry.shape_there)} (for {_place_of(entry)})")
            continue
        scale = rest.pop(entry.name + SCALE, None)
        sources[entry.name] = Source(tensor, scale)
        problems += _faults(entry, tensor, scale, quantised)
    problems += [f"unknown tensor {name} {each.dtype} {list(each.shape)}" for name, each in rest.items()]
    if problems:
        raise CheckpointError(f"{directory} does not match its config.json:\n  " + "\n  ".join(problems))
    return sources


def _place_of(entry: Entry) -> str:
    return f"{entry.path}{list(entry.index)}" if entry.index else entry.path


def _faults(entry: Entry, tensor: Tensor, scale: Tensor | None, quantised: Quantization | None) -> Iterator[str]:
    """Yields the reasons why a tensor does not fit a parameter."""
    what = f"{entry.name}: {tensor.dtype} {list(tensor.shape)}"
    if tensor.shape != entry.shape_there:
        yield f"{what} does not fit {_place_of(entry)}, which needs {list(entry.shape_there)}"
        return
    if tensor.dtype not in _FLOATS + FLOAT8:
        yield f"{what} is not a floating-point tensor"
    if tensor.dtype in FLOAT8:
        if quantised is None or not quantised.applies_to(entry.name):
            yield f"{what} is quantised, but config.json's quantization_config says that it is not"
        if scale is None:
            yield f"{what} is quantised, but there is no {entry.name}{SCALE}"
    if scale is not None:
        expected = quantization.scale_shape(tensor.shape)
        if tensor.dtype not in FLOAT8:
            yield f"{what} is not quantised, but there is a {entry.name}{SCALE}"
        elif len(expected) != 2 or scale.shape != expected or scale.dtype not in _FLOATS:
            yield f"{entry.name}{SCALE}: {scale.dtype} {list(scale.shape)} does not fit, needs {list(expected)}"


# ---------------------------------------------------------------- filling


def _empty_stacks(abstract: Mapping[str, Any], placements: Mapping[str, Any]) -> dict[str, Leaves]:
    """Makes zeros for the leaves that several layers share, by stack; sharded at once, in one program."""
    shapes = tuple((path, leaf.shape, leaf.dtype) for path, leaf in abstract.items() if stack_of(path))
    out = {path: placements[path] for path, *_ in shapes} if placements else None
    zeros = jax.jit(_zeros, static_argnums=0, out_shardings=out)(shapes)
    return {stack: {path: leaf for path, leaf in zeros.items() if stack_of(path) == stack} for stack in STACKS}


def _zeros(shapes: tuple[tuple[str, tuple[int, ...], Any], ...]) -> Leaves:
    return {path: jnp.zeros(shape, dtype) for path, shape, dtype in shapes}


def _read(entry: Entry, source: Source, float8: frozenset[str]) -> Iterator[tuple[Path, str, np.ndarray]]:
    """Yields the file, the path and the value in our layout of each leaf that one tensor is made to: of a stacked leaf,
    one layer. A kernel that stays float8 has two: itself and its scales."""
    file, scale = source.tensor.path, source.scale
    if scale is None or entry.path not in float8:
        yield file, entry.path, entry.inward(source.read())
        return
    yield file, entry.path, entry.inward(source.tensor.view())
    yield scale.path, quantised_kernels.scale_of(entry.path), quantization.scale_inward(entry, scale.view())


def _array(entry: Entry, file: Path, value: np.ndarray, kind: np.dtype, sharding: Any) -> jax.Array:
    """Copies a value in our layout to an array of the dtype `kind`."""

    def piece(index: Any) -> np.ndarray:
        copy = _copy(value[index], kind)
        if not all_finite(copy):
            raise CheckpointError(
                f"{file}: {entry.name} holds values that are NaN or infinite in {kind.name}: the file is "
                "damaged, or its training diverged; download it again or take an earlier checkpoint"
            )
        return copy

    if sharding is None:
        return jax.device_put(piece(...))
    layer = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*sharding.spec[len(entry.index) :]))
    return jax.make_array_from_callback(value.shape, layer, piece)


def _copy(value: np.ndarray, kind: np.dtype) -> np.ndarray:
    """Copies the value into C order; always a copy, since no parameter may be in a mapped file.

    A transposed value is copied in tiles of some rows of the file, each of which stays in the processor's cache: three
    times as fast as NumPy's way, which reads a line of memory for every value.
    """
    if value.ndim < 2 or value.flags.c_contiguous:
        return np.array(value, kind, order="C")
    copy = np.empty(value.shape, kind)
    axis = int(np.argmax(value.strides))
    row = value.itemsize * value.shape[int(np.argmin(value.strides))]
    step = max(1, _TILE_ROWS * row // max(value.strides[axis], 1))
    for start in range(0, value.shape[axis], step):
        tile = (*[slice(None)] * axis, slice(start, start + step))
        copy[tile] = value[tile]
    return copy


def _place(stack: Leaves, layer: Leaves, index: tuple[int, ...], placements: Mapping[str, Any]) -> Leaves:
    """Writes one layer into the stack, in place. Waits until it is done, because the next layer needs the memory."""
    out = {path: placements[path] for path in stack} if placements else None
    write = jax.jit(_write, donate_argnums=0, out_shardings=out)
    return jax.block_until_ready(write(stack, layer, tuple(np.int32(each) for each in index)))


def _write(stack: Leaves, layer: Leaves, index: tuple[jax.Array, ...]) -> Leaves:
    def one(leaf: jax.Array, value: jax.Array) -> jax.Array:
        start = (*index, *[0] * value.ndim)
        return jax.lax.dynamic_update_slice(leaf, value.reshape((1,) * len(index) + value.shape), start)

    return {path: one(leaf, layer[path]) for path, leaf in stack.items()}
