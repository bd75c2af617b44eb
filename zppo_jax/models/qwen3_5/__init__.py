"""Qwen3.5 vision-language models: gated DeltaNet, gated attention, interleaved M-RoPE, vision tower.

model = qwen3_5.load("Qwen/Qwen3.5-0.8B")      # config.json + *.safetensors -> Model(config, params)
logits = qwen3_5.forward(model, **hf_inputs)   # outputs of the Hugging Face processor -> [B, T, V]
qwen3_5.save(model, "out")                     # transformers loads it
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zppo_jax import parallel
from zppo_jax.models.qwen3_5 import config as configs
from zppo_jax.models.qwen3_5 import hf, inputs, quantised, vlm
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.models.qwen3_5.hf import CheckpointError
from zppo_jax.models.qwen3_5.hf.quantization import Weights
from zppo_jax.models.qwen3_5.vlm import abstract_params, init_params

__all__ = ["CheckpointError", "Config", "Model", "abstract_params", "forward", "init_params", "load", "save"]


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A configuration and its parameters (a nested dict of arrays)."""

    config: Config
    params: dict[str, Any]


def load(
    path: str | Path,
    dtype: str = "float32",
    mesh: jax.sharding.Mesh | None = None,
    report: Callable[[str], None] | None = None,
    weights: Weights = "dequantised",
) -> Model:
    """Load a Hugging Face directory, or OWNER/NAME of the Hub; needs only config.json and the safetensors files.

    Block-wise FP8 kernels of the language model become values of `dtype`, or with weights "as_stored" stay FP8 (half
    the memory, the same results); such a model is only read. `dtype` is always that of all other parameters and of the
    computation.
    On a `mesh` each device gets its part of each parameter. `report` gets a line of progress before each tensor. Raises
    FileNotFoundError for a missing file and CheckpointError listing every tensor that does not fit.
    """
    directory = hf.resolve(path)
    config = configs.from_directory(directory)
    float8 = hf.float8_kernels(directory, config) if weights == "as_stored" else frozenset()
    shardings = None
    if mesh is not None:
        shapes = hf.abstract_params(config, dtype, float8)
        shardings = parallel.shardings(mesh, shapes, quantised.with_scales(vlm.logical_axes(config), shapes))
    return Model(config, hf.load_params(directory, config, dtype, shardings, report, float8))


def save(model: Model, directory: str | Path) -> None:
    """Write a directory that transformers loads; with the same dtype the same bytes come back.

    An earlier save there is replaced as a whole; a directory that holds anything else is refused (CheckpointError).
    """
    hf.save_directory(directory, model.config, model.params)


@functools.partial(jax.jit, static_argnums=1)
def _logits(params, config, batch):
    return vlm.logits(params, config, batch)


def forward(model: Model, **hf_inputs: np.ndarray) -> jax.Array:
    """Compute logits [B, T, V] for the outputs of the Hugging Face processor (NumPy arrays, either padding side)."""
    batch, _ = inputs.from_hf(model.config, **hf_inputs)
    return _logits(model.params, model.config, batch)[:, : np.shape(hf_inputs["input_ids"])[1]]
