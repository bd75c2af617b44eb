"""Block-wise FP8 checkpoints: the same weights as the formula gives, ragged blocks included; faults are named."""

from __future__ import annotations

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.models import tiny
from tests.models.test_reader import raw_file
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import CheckpointError, hf
from zppo_jax.models.qwen3_5 import config as configs
from zppo_jax.models.qwen3_5.config import UnsupportedConfigError
from zppo_jax.models.qwen3_5.hf import quantization

LAYER = "model.language_model.layers."
QUANTISED = (
    f"{LAYER}0.mlp.up_proj.weight",
    f"{LAYER}0.linear_attn.in_proj_qkv.weight",
    f"{LAYER}3.self_attn.q_proj.weight",
)
KEPT = ["lm_head", "model.visual", f"{LAYER}0.linear_attn.conv1d", f"{LAYER}1.linear_attn", "in_proj_a"]
CONFIG = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
    "modules_to_not_convert": KEPT,
}
NAMES = {"float32": "F32", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3"}


def by_formula(weight, scale):
    """Dequantises element by element, by the format's definition."""
    rows, columns = np.indices(weight.shape)
    return weight.astype(np.float32) * scale.astype(np.float32)[rows // 128, columns // 128]


def quantise(value):
    """float8 [O, I] and its scales, so that each block's largest element is float8's largest."""
    rows, columns = (-(-size // 128) for size in value.shape)
    scale = np.empty((rows, columns), np.float32)
    weight = np.empty(value.shape, ml_dtypes.float8_e4m3fn)
    for row in range(rows):
        for column in range(columns):
            block = np.s_[row * 128 : (row + 1) * 128, column * 128 : (column + 1) * 128]
            scale[row, column] = np.abs(value[block]).max() / 448
            weight[block] = (value[block] / scale[row, column]).astype(ml_dtypes.float8_e4m3fn)
    return weight, scale


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A checkpoint whose matrices have several blocks, the last ones ragged: MLP 200 x 192, q, k, v 4 x 80 x 192."""
    changes = {"text__hidden_size": 192, "text__intermediate_size": 200, "vision__out_hidden_size": 192}
    config = configs.from_dict(tiny.config_dict(**changes))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), qwen3_5.abstract_params(config))
    directory = tmp_path_factory.mktemp("wide")
    qwen3_5.save(qwen3_5.Model(config, params), directory)
    return directory


def write(directory, config, tensors):
    """Writes the format directly: safetensors' NumPy writer does not know float8's name either."""
    header, data = {}, b""
    for name, tensor in tensors.items():
        span = [len(data), len(data) + tensor.nbytes]
        header[name] = {"dtype": NAMES[tensor.dtype.name], "shape": list(tensor.shape), "data_offsets": span}
        data += tensor.tobytes()
    directory.mkdir(exist_ok=True)
    raw_file(directory / "model.safetensors", header, data)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture
def parts(wide):
    """config.json and tensors of the quantised checkpoint, to be changed."""
    raw = json.loads((wide / "config.json").read_text()) | {"quantization_config": CONFIG}
    tensors = load_file(wide / "model.safetensors")
    for name in QUANTISED:
        tensors[name], tensors[f"{name}_scale_inv"] = quantise(tensors[name])
    return raw, tensors


@pytest.mark.parametrize("shape", [(128, 128), (256, 384), (200, 192), (1, 1), (129, 127), (300, 130)])
def test_a_weight_is_what_the_formula_gives(shape):
    rng = np.random.default_rng(1)
    weight, scale = quantise(rng.standard_normal(shape, np.float32) * 2.0 ** rng.integers(-9, 9, shape))
    assert scale.shape == quantization.scale_shape(shape)
    np.testing.assert_array_equal(quantization.dequantise(weight, scale), by_formula(weight, scale))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quantised_checkpoint_is_loaded_as_if_it_had_been_written_out(dtype, parts, wide, tmp_path):
    raw, tensors = parts
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith("_scale_inv")}
    for name in QUANTISED:
        plain[name] = by_formula(tensors[name], tensors[f"{name}_scale_inv"])
        original = load_file(wide / "model.safetensors")[name]
        assert np.abs(plain[name] - original).max() < 0.04 * np.abs(original).max()
    loaded = qwen3_5.load(write(tmp_path / "fp8", raw, tensors), dtype=dtype)
    expected = qwen3_5.load(write(tmp_path / "plain", raw | {"quantization_config": None}, plain), dtype=dtype)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected.params)
    assert loaded.config == expected.config


def test_scales_may_be_bfloat16(parts, tmp_path):
    raw, tensors = parts
    scale = tensors[f"{QUANTISED[0]}_scale_inv"].astype(ml_dtypes.bfloat16)
    loaded = qwen3_5.load(write(tmp_path, raw, tensors | {f"{QUANTISED[0]}_scale_inv": scale}))
    expected = by_formula(tensors[QUANTISED[0]], scale)
    np.testing.assert_array_equal(hf.tensors(loaded.config, loaded.params)[QUANTISED[0]], expected)


def test_transformers_dequantises_alike():
    """Whole blocks only: transformers 5.23 refuses a ragged last one."""
    torch = pytest.importorskip("torch")
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    weight, scale = quantise(np.random.default_rng(2).standard_normal((256, 384), np.float32))
    theirs = torch.from_numpy(weight.view(np.uint8)).view(torch.float8_e4m3fn)
    expected = Fp8Dequantize(None)._dequantize_one(theirs, torch.from_numpy(scale), torch.float32)
    np.testing.assert_array_equal(quantization.dequantise(weight, scale), expected.numpy())


@pytest.mark.parametrize(
    ("name", "quantised"),
    [
        (f"{LAYER}0.mlp.up_proj.weight", True),
        (f"{LAYER}0.linear_attn.in_proj_qkv.weight", True),
        (f"{LAYER}0.linear_attn.conv1d.weight", False),
        (f"{LAYER}1.linear_attn.in_proj_qkv.weight", False),
        (f"{LAYER}10.linear_attn.in_proj_qkv.weight", True),
        (f"{LAYER}2.linear_attn.in_proj_a.weight", False),
        ("model.visual.blocks.0.attn.qkv.weight", False),
        ("lm_head.weight", False),
    ],
)
def test_modules_that_are_not_converted(name, quantised):
    assert quantization.parse(CONFIG).applies_to(name) == quantised


def changed(parts, fault):
    raw, tensors = parts
    first, scale = QUANTISED[0], f"{QUANTISED[0]}_scale_inv"
    if fault == "no scale":
        del tensors[scale]
    elif fault == "scale of another shape":
        tensors[scale] = tensors[scale][:1]
    elif fault == "scale of another type":
        tensors[scale] = tensors[first][:2, :2]
    elif fault == "a module that is not converted":
        raw["quantization_config"] = CONFIG | {"modules_to_not_convert": [*KEPT, f"{LAYER}0.mlp"]}
    elif fault == "no quantization_config":
        del raw["quantization_config"]
    else:
        tensors[first] = tensors[first].astype(np.float32)
    return raw, tensors


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no scale", "is quantised, but there is no {name}_scale_inv"),
        ("scale of another shape", "{name}_scale_inv: F32 [1, 2] does not fit, needs [2, 2]"),
        ("scale of another type", "{name}_scale_inv: F8_E4M3 [2, 2] does not fit"),
        ("a module that is not converted", "{name}: F8_E4M3 [200, 192] is quantised, but config.json's"),
        ("no quantization_config", "{name}: F8_E4M3 [200, 192] is quantised, but config.json's"),
        ("a scale too many", "{name}: F32 [200, 192] is not quantised, but there is a"),
    ],
)
def test_what_does_not_fit_is_listed(fault, message, parts, tmp_path):
    with pytest.raises(CheckpointError) as caught:
        qwen3_5.load(write(tmp_path, *changed(parts, fault)))
    assert message.format(name=QUANTISED[0]) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"quant_method": "gptq"}, "quant_method='gptq'"),
        ({"quant_method": None}, "quant_method=None"),
        ({"weight_block_size": [64, 64]}, "weight_block_size=[64, 64]"),
        ({"weight_block_size": None}, "weight_block_size=None"),
        ({"activation_scheme": "static"}, "activation_scheme='static'"),
        ({"fmt": "e5m2"}, "fmt='e5m2'"),
        ({"modules_to_not_convert": "lm_head"}, "modules_to_not_convert"),
    ],
)
def test_another_quantisation_is_refused_by_name(change, named, parts, tmp_path):
    raw, tensors = parts
    raw["quantization_config"] = CONFIG | change
    with pytest.raises(UnsupportedConfigError) as caught:
        qwen3_5.load(write(tmp_path, raw, tensors))
    assert named in str(caught.value)


@pytest.mark.parametrize("what", ["weight", "scale"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quantised_weight_that_is_not_a_number_is_refused(what, dtype, parts, tmp_path):
    raw, tensors = parts
    name = QUANTISED[0] + ("_scale_inv" if what == "scale" else "")
    tensors[name] = tensors[name].copy()
    tensors[name][-1, 0] = np.nan
    path = write(tmp_path, raw, tensors) / "model.safetensors"
    with pytest.raises(CheckpointError) as caught:
        qwen3_5.load(tmp_path, dtype)
    assert str(caught.value).startswith(f"{path}: {QUANTISED[0]} holds values that are NaN or infinite in {dtype}: ")
