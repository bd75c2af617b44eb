"""FP8 kernels that stay FP8: the same values, scores and tokens as the de-quantised model, in half the memory.

The widths are those of an awkward model: blocks of 128 that end inside heads, ragged last ones, and key heads whose
q, k and v are parted by the order of the rows.
"""

from __future__ import annotations

import functools
import inspect
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.models import tiny
from tests.models.test_quantization import CONFIG as FP8
from tests.models.test_quantization import quantise, write
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import config as configs
from zppo_jax.models.qwen3_5 import decode, decode_weights, hf, inputs, quantised, sizes, text, vlm
from zppo_jax.models.qwen3_5.hf import reader
from zppo_jax.models.qwen3_5.parameters import flatten
from zppo_jax.rollout.generate import generate
from zppo_jax.update import programs

KEPT = ["lm_head", "model.visual", "conv1d", "in_proj_a", "in_proj_b", "embed_tokens"]


def convert(source, target):
    """Writes a checkpoint again with the matrices of its language model in FP8."""
    raw = json.loads((source / "config.json").read_text())
    raw["quantization_config"] = FP8 | {"modules_to_not_convert": KEPT}
    tensors = load_file(source / "model.safetensors")
    for name in sorted(tensors):
        if ".layers." in name and tensors[name].ndim == 2 and not any(f"{kept}." in name for kept in KEPT):
            tensors[name], tensors[f"{name}_scale_inv"] = quantise(tensors[name])
    return write(target, raw, tensors)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    changes = {"text__hidden_size": 192, "text__intermediate_size": 200, "vision__out_hidden_size": 192}
    changes |= {"text__linear_key_head_dim": 48, "text__linear_value_head_dim": 40, "text__num_hidden_layers": 3}
    config = configs.from_dict(tiny.config_dict(**changes, text__full_attention_interval=3))
    plain = tmp_path_factory.mktemp("plain")
    qwen3_5.save(qwen3_5.Model(config, tiny.random_params(config, 3)), plain)
    return convert(plain, tmp_path_factory.mktemp("fp8") / "model")


@pytest.fixture(scope="module")
def load(directory):
    return functools.cache(functools.partial(qwen3_5.load, directory))


def test_kernels_stay_float8_with_the_values_of_the_file(load):
    stored, plain = load("bfloat16", weights="as_stored"), load("bfloat16")
    found = quantised.kernels(flatten(stored.params))
    assert {path.split("/", 2)[2] for path in found if path.startswith("text/linear")} == {
        f"{name}/kernel" for name in ("mixer/qkv", "mixer/z", "mixer/out", "mlp/gate", "mlp/up", "mlp/down")
    }
    assert len(found) == 6 + 7
    assert all(flatten(stored.params)[path].dtype == jnp.float8_e4m3fn for path in found)
    same = jax.tree.map(np.array_equal, quantised.dequantised(stored.params, jnp.bfloat16), plain.params)
    assert all(jax.tree.leaves(same)), same
    shapes = hf.abstract_params(stored.config, "bfloat16", frozenset(found))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), stored.params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes
    )


def test_a_kernel_of_which_one_layer_is_not_quantised_is_dequantised_whole(directory, tmp_path):
    tensors, raw = reader.tensors(directory), json.loads((directory / "config.json").read_text())
    values, name = (
        {key: tensor.view() for key, tensor in tensors.items()},
        "model.language_model.layers.1.mlp.up_proj.weight",
    )
    values[name] = values[name].astype(np.float32)
    del values[f"{name}_scale_inv"]
    model = qwen3_5.load(write(tmp_path / "mixed", raw, values), weights="as_stored")
    paths = quantised.kernels(flatten(model.params))
    assert "text/linear/mlp/up/kernel" not in paths and "text/linear/mlp/gate/kernel" in paths
    assert model.params["text"]["linear"]["mlp"]["up"]["kernel"].dtype == jnp.float32


@functools.partial(jax.jit, static_argnums=1)
def scores(params, config, batch):
    """The scores [B, T, V] of a prompt, and those [B, V] of one token decoded after it."""
    hidden, cache = vlm.prefill(params, config, batch)
    states = decode.unstack_cache(cache, config.text, 1)
    weights = decode_weights.prepare(params["text"], config.text, len(hidden))
    x = text.embed(weights, batch["tokens_BT"][:, -1:])[:, 0]
    mask = jnp.pad(cache["mask"], [(0, 0), (0, 1)], constant_values=True)
    slot = hidden.shape[1]
    step, _ = decode.step_layers(weights, config.text, x, jnp.full(len(x), slot), mask, states, jnp.int32(slot))
    return text.logits(params["text"], hidden), decode.logits(weights, step)


@pytest.fixture(scope="module", params=[2, 12], ids=["weights first", "rows first"])
def compared(request, load):
    """{(dtype, weights): scores of prefill and of decoding}; 2 rows and 12 are decoded by different products."""
    ids = np.random.default_rng(0).integers(10, 480, (request.param, 24))
    batch, _ = inputs.from_hf(load().config, input_ids=ids, attention_mask=np.ones_like(ids))
    kinds = [(dtype, weights) for dtype in ("float32", "bfloat16") for weights in ("as_stored", "dequantised")]
    models = {kind: load(kind[0], weights=kind[1]) for kind in kinds}
    return {
        kind: [np.asarray(x, np.float32) for x in scores(model.params, model.config, batch)]
        for kind, model in models.items()
    }


@pytest.mark.parametrize("part", [0, 1], ids=["prefill", "decoding"])
def test_scores_are_no_further_off_than_those_of_the_dequantised_model(part, compared):
    exact = compared["float32", "dequantised"][part]
    np.testing.assert_allclose(compared["float32", "as_stored"][part], exact, rtol=1e-5, atol=1e-5)
    ours, theirs = (
        np.sqrt(np.mean((compared["bfloat16", weights][part] - exact) ** 2)) for weights in ("as_stored", "dequantised")
    )
    print(f"root mean square error of bfloat16: {ours:.5f} FP8, {theirs:.5f} de-quantised")
    assert 0 < ours <= 1.1 * theirs


def test_greedy_tokens_are_the_same(load):
    ids = np.random.default_rng(1).integers(10, 480, (2, 16))
    prompt = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    ours, theirs = (
        generate(load("float32", weights=weights), prompt, 1, 64, temperature=0.0, stop_ids=[])
        for weights in ("as_stored", "dequantised")
    )
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-4)


def test_decoding_copies_no_float8_kernel(load):
    params = load("bfloat16", weights="as_stored").params["text"]
    config = load().config.text
    copied = jax.eval_shape(lambda: decode_weights.join(params, config, 16))
    assert jnp.float8_e4m3fn not in {leaf.dtype for leaf in jax.tree.leaves(copied)}
    stacks = decode_weights.uncopied(params, 16)["stacks"]
    assert stacks["linear"]["mlp/up/kernel"] is params["linear"]["mlp"]["up"]["kernel"]
    axes = decode_weights.weight_axes(config, params)
    whole = jax.eval_shape(lambda: decode_weights.prepare(params, config, 16))
    jax.tree.map(lambda leaf, names: None if len(names) <= leaf.ndim else pytest.fail(f"{leaf} {names}"), whole, axes)


def test_a_published_size_takes_half_the_memory():
    config = sizes.get("27B")
    plain, stored = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(hf.abstract_params(config, "bfloat16", float8)))
        for float8 in (frozenset(), hf.published_float8_kernels(config))
    )
    assert 0.5 < stored / plain < 0.58
    shapes = flatten(hf.abstract_params(config, "bfloat16", hf.published_float8_kernels(config)))
    assert shapes["text/linear/mixer/qkv/scale"].shape == (16, 3, 40, 16, 5)  # blocks of 128 x 128 as in the files
    assert shapes["text/full/mixer/o/scale"].shape == (16, 24, 2, 40)


def test_it_is_neither_trained_nor_saved(load, tmp_path):
    model = load(weights="as_stored")
    with pytest.raises(quantised.QuantisedError, match="12 other kernels are FP8, which cannot be saved: load"):
        qwen3_5.save(model, tmp_path / "out")
    with pytest.raises(quantised.QuantisedError, match="which cannot be trained: load the checkpoint with weights="):
        inspect.unwrap(programs.init_optimizer)(model.params, None)


SHARDED = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
import numpy as np
from zppo_jax import parallel
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import quantised
from zppo_jax.models.qwen3_5.hf import reader
from zppo_jax.models.qwen3_5.parameters import flatten
from zppo_jax.rollout.generate import generate

mesh = parallel.make_mesh(1, 2, 2)
whole = qwen3_5.load(sys.argv[1], weights="as_stored")
cut = qwen3_5.load(sys.argv[1], mesh=mesh, weights="as_stored")
for path, leaf in flatten(cut.params).items():
    np.testing.assert_array_equal(leaf, flatten(whole.params)[path], path)
kernel = cut.params["text"]["linear"]["mlp"]["up"]
assert kernel["kernel"].sharding.shard_shape(kernel["kernel"].shape)[2:] == (96, 100)
ids = np.random.default_rng(1).integers(10, 480, (2, 16))
prompt = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
expected = generate(whole, prompt, 2, 8, temperature=0.0, stop_ids=[])
with parallel.use(mesh):
    found = generate(cut, prompt, 2, 8, temperature=0.0, stop_ids=[])
np.testing.assert_array_equal(found.tokens, expected.tokens)
np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-4)
"""


def test_cut_over_devices_it_is_the_same_model(directory):
    result = subprocess.run([sys.executable, "-c", SHARDED, str(directory)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
