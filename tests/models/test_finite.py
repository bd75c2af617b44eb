"""Weights that are not numbers are refused when a model is loaded, by tensor and file."""

from __future__ import annotations

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from zppo_jax import parallel
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import CheckpointError
from zppo_jax.models.qwen3_5.hf.finite import all_finite

WEIGHTS = "model.safetensors"
LAYER = "model.language_model.layers"
TENSORS = (
    "model.language_model.embed_tokens.weight",
    "model.language_model.norm.weight",
    f"{LAYER}.1.linear_attn.in_proj_qkv.weight",
    f"{LAYER}.2.linear_attn.conv1d.weight",
    f"{LAYER}.0.linear_attn.A_log",
    f"{LAYER}.3.self_attn.o_proj.weight",
    "model.visual.patch_embed.proj.weight",
    "model.visual.blocks.1.attn.qkv.bias",
)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_every_16_bit_value_is_judged_as_numpy_judges_it(kind):
    values = np.arange(2**16, dtype=np.uint16).view(kind)
    finite = np.isfinite(values.astype(np.float32))
    assert all_finite(values[finite])
    assert not any(all_finite(values[place : place + 1]) for place in np.flatnonzero(~finite))
    assert all(all_finite(values[place : place + 1]) for place in np.flatnonzero(finite)[::7])


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_one_value_among_many(kind):
    values = np.random.default_rng(0).standard_normal((300, 700)).astype(kind)
    assert all_finite(values) and all_finite(values[:0]) and all_finite(values[0, 0])
    for place in ((0, 0), (299, 699), (150, 3)):
        for value in (np.nan, np.inf, -np.inf):
            damaged = values.copy()
            damaged[place] = value
            assert not all_finite(damaged), (place, value)


def test_large_values_are_numbers():
    assert all_finite(np.full(1000, 3e38, np.float32)) and all_finite(np.full(10, -1e300))


def _damaged(directory, tmp_path, name, value):
    """The model with one value of one tensor changed."""
    tensors = load_file(directory / WEIGHTS)
    changed = tensors[name].copy()
    changed.reshape(-1)[changed.size // 3] = value
    save_file(tensors | {name: changed}, tmp_path / WEIGHTS)
    for file in directory.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize(("value", "dtype"), [(np.nan, "float32"), (-np.inf, "bfloat16")])
def test_a_weight_that_is_not_a_number_is_refused_by_tensor_and_file(name, value, dtype, directory, tmp_path):
    path = _damaged(directory, tmp_path, name, value)
    with pytest.raises(CheckpointError) as caught:
        qwen3_5.load(path, dtype)
    message = str(caught.value)
    assert message.startswith(f"{path / WEIGHTS}: {name} holds values that are NaN or infinite in ")
    assert "\n" not in message


def test_what_is_ignored_is_not_looked_at(directory, tmp_path, model):
    tensors = load_file(directory / WEIGHTS) | {"mtp.fc.weight": np.full((2, 2), np.nan, np.float32)}
    save_file(tensors, tmp_path / WEIGHTS)
    for file in directory.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    jax.tree.map(np.testing.assert_array_equal, qwen3_5.load(tmp_path).params, model.params)


def test_a_weight_is_refused_on_a_mesh_as_well(directory, tmp_path):
    path = _damaged(directory, tmp_path, TENSORS[2], np.nan)
    mesh = parallel.make_mesh(data=1, fsdp=1, tensor=1)
    with pytest.raises(CheckpointError, match=r"in_proj_qkv\.weight holds values that are NaN"):
        qwen3_5.load(path, mesh=mesh)
