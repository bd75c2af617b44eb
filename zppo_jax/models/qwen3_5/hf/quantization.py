"""Block-wise FP8 weights, as in the published -FP8 checkpoints: w = fp8 * scale, one scale for each 128 x 128 block.

A tensor `X` in float8 comes with `X_scale_inv` (which, in spite of its name, is the factor). The last block of a row or
column may be ragged. Only matrices of the language model are quantised; `modules_to_not_convert` names the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zppo_jax.models.qwen3_5.config_keys import UnsupportedConfigError, read_json

SCALE = "_scale_inv"
BLOCK = 128
FLOAT8 = ("F8_E4M3", "F8_E5M2")

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
