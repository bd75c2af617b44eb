"""Block-wise FP8 weights, as in the published -FP8 checkpoints: w = fp8 * scale, one scale for each 128 x 128 block.

They are de-quantised while loading, or stay float8 in our layout with their scales (quantised.py computes with those).

A tensor `X` in float8 comes with `X_scale_inv` (which, in spite of its name, is the factor). The last block of a row or
column may be ragged. Only matrices of the language model are quantised; `modules_to_not_convert` names the rest.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zppo_jax.models.qwen3_5.config_keys import UnsupportedConfigError, read_json
from zppo_jax.models.qwen3_5.hf.names import Entry

Weights = Literal["as_stored", "dequantised"]
"""What becomes of float8 kernels: they stay float8 in memory, or become values of the model's dtype."""

SCALE = "_scale_inv"
BLOCK = 128
FLOAT8_KEPT = "F8_E4M3"
FLOAT8 = (FLOAT8_KEPT, "F8_E5M2")
"""The float8 types that are read, and the one that may stay in memory."""

_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "quant_method": ("fp8",),
    "fmt": ("e4m3", None),
    "weight_block_size": ([BLOCK, BLOCK],),
    "activation_scheme": ("dynamic", None),
}


@dataclasses.dataclass(frozen=True)
class Quantization:
    """The modules that are not quantised: each is a module's whole name, a parent's, or the end of a name."""

    kept: tuple[str, ...]

    def applies_to(self, name: str) -> bool:
        """Whether the tensor `name` (of a module `name` without its last part) may be quantised."""
        module = name.rpartition(".")[0]
        return not any(f".{module}.".startswith(f".{kept}.") or module.endswith(f".{kept}") for kept in self.kept)


def read(directory: Path) -> Quantization | None:
    """Reads how a directory's weights are quantised. Raises UnsupportedConfigError for an unknown kind."""
    content = read_json(directory / "config.json").get("quantization_config")
    return None if content is None else parse(content)


def parse(content: Any) -> Quantization:
    """Parses and checks the `quantization_config` of a config.json."""
    content = content if isinstance(content, Mapping) else {"quant_method": content}
    for key, values in _SUPPORTED.items():
        if content.get(key) not in values:
            raise UnsupportedConfigError(
                f"quantization_config.{key}={content.get(key)!r} is not supported (only {values[0]!r}): use the "
                "unquantised checkpoint, or the block-wise FP8 one"
            )
    kept = content.get("modules_to_not_convert") or []
    if not isinstance(kept, list) or not all(isinstance(name, str) and name for name in kept):
        raise UnsupportedConfigError(f"quantization_config.modules_to_not_convert={kept!r} is not a list of names")
    return Quantization(tuple(kept))


def scale_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the scales of a weight: its blocks, ragged ones included."""
    return tuple(-(-size // BLOCK) for size in shape)


def dequantise(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Computes float32 [O, I] from a float8 weight [O, I] and its scales [ceil(O / 128), ceil(I / 128)]."""
    value = weight.astype(np.float32)
    for row, scales in enumerate(scale.astype(np.float32)):
        value[row * BLOCK : (row + 1) * BLOCK] *= np.repeat(scales, BLOCK)[: weight.shape[1]]
    return value


# ---------------------------------------------------------------- float8 kernels in our layout


PUBLISHED = Quantization(("lm_head", "model.visual", "embed_tokens", "conv1d", "in_proj_a", "in_proj_b"))
"""What the published -FP8 checkpoints convert, for a plan without their files."""


def float8_kernels(entries: Iterable[Entry], is_float8: Callable[[str], bool]) -> frozenset[str]:
    """The paths of the language model's kernels that can stay float8: those whose tensors, by name, all are."""
    whole: dict[str, bool] = {}
    for entry in entries:
        if entry.path.startswith("text/") and entry.leaf.num_inputs:
            whole[entry.path] = whole.get(entry.path, True) and is_float8(entry.name)
    return frozenset(path for path, found in whole.items() if found)


def scale_shape_here(entry: Entry) -> tuple[int, ...]:
    """The shape of a kernel's scales in our layout."""
    shape, (per_input, per_output) = list(entry.shape), _neighbours(entry)
    shape[entry.leaf.num_inputs - 1] //= per_input
    shape[-1] //= per_output
    return tuple(shape)


def scale_inward(entry: Entry, scale: np.ndarray) -> np.ndarray:
    """Converts the scales [ceil(O / 128), ceil(I / 128)] of a kernel to our layout, in float32.

    Blocks of the file may end inside a head, or the order of heads may part them: then one scale is repeated.
    """
    outputs, inputs = entry.shape_there
    per_input, per_output = _neighbours(entry)
    fine = np.repeat(scale.astype(np.float32), BLOCK // per_output, axis=0)[: outputs // per_output]
    fine = np.repeat(fine, BLOCK // per_input, axis=1)[:, : inputs // per_input]
    return entry.conversion.inward(fine, entry.leaf).reshape(scale_shape_here(entry))


def _neighbours(entry: Entry) -> tuple[int, int]:
    """The number of neighbours, along the last input axis and along the last output axis, that share a scale in our
    layout: the most that divide both a block and what stays together."""
    return math.gcd(entry.shape[entry.leaf.num_inputs - 1], BLOCK), math.gcd(entry.conversion.run(entry.leaf), BLOCK)
