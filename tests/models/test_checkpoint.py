"""Hugging Face checkpoints in and out: bytes, dtypes, and damage that must be named."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.models import tiny
from tests.runs import compilations
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import CheckpointError, hf
from zppo_jax.models.qwen3_5.hf import load, reader
from zppo_jax.models.qwen3_5.parameters import flatten

WEIGHTS = "model.safetensors"
EMBED = "model.language_model.embed_tokens.weight"
KEPT = ("linear_attn.A_log", "linear_attn.norm.weight")


def same_bytes(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert set(first) == set(second)
    for name, tensor in first.items():
        assert (tensor.dtype, tensor.shape) == (second[name].dtype, second[name].shape), name
        assert tensor.tobytes() == second[name].tobytes(), name


def written(path, tensors, **files):
    """A checkpoint directory at `path` with the tiny config, these tensors and these JSON files."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(tiny.config_dict()))
    save_file(tensors, path / WEIGHTS)
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return path


@pytest.fixture(scope="module")
def tensors(directory):
    return load_file(directory / WEIGHTS)


def published_bfloat16(tensors):
    """Tensors as published: bfloat16, but A_log and the gated norm's weight in float32."""
    return {name: tensor if name.endswith(KEPT) else tensor.astype(jnp.bfloat16) for name, tensor in tensors.items()}


# ---------------------------------------------------------------- round trips


def test_load_and_save_give_the_same_bytes_back(model, directory, tensors, tmp_path):
    loaded = qwen3_5.load(directory)
    assert loaded.config == model.config
    for path, leaf in flatten(loaded.params).items():
        np.testing.assert_array_equal(leaf, flatten(model.params)[path], err_msg=path)
    qwen3_5.save(loaded, tmp_path)
    same_bytes(load_file(tmp_path / WEIGHTS), tensors)
    assert "lm_head.weight" not in tensors


def test_an_untied_head_is_written_and_read(untied_model, tmp_path):
    qwen3_5.save(untied_model, tmp_path / "a")
    qwen3_5.save(qwen3_5.load(tmp_path / "a"), tmp_path / "b")
    first = load_file(tmp_path / "a" / WEIGHTS)
    assert first["lm_head.weight"].shape == (512, 64)
    same_bytes(load_file(tmp_path / "b" / WEIGHTS), first)


def test_bfloat16_checkpoints_come_back_with_their_mixed_dtypes(tensors, tmp_path):
    original = published_bfloat16(tensors)
    loaded = qwen3_5.load(written(tmp_path / "a", original), dtype="bfloat16")
    mixer = loaded.params["text"]["linear"]["mixer"]
    assert mixer["a_log"].dtype == mixer["norm"]["weight"].dtype == jnp.float32
    assert mixer["dt_bias"].dtype == loaded.params["text"]["embed"].dtype == jnp.bfloat16
    qwen3_5.save(loaded, tmp_path / "b")
    same_bytes(load_file(tmp_path / "b" / WEIGHTS), original)
    assert json.loads((tmp_path / "b" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_wholly_bfloat16_checkpoint_comes_back_as_published_ones_are(tensors, tmp_path):
    """What transformers writes after from_pretrained(dtype=bfloat16), which casts A_log as well: the same values."""
    original = {name: tensor.astype(jnp.bfloat16) for name, tensor in tensors.items()}
    loaded = qwen3_5.load(written(tmp_path / "a", original), dtype="bfloat16")
    assert loaded.params["text"]["linear"]["mixer"]["a_log"].dtype == jnp.float32
    qwen3_5.save(loaded, tmp_path / "b")
    expected = {name: tensor.astype(np.float32) if name.endswith(KEPT) else tensor for name, tensor in original.items()}
    same_bytes(load_file(tmp_path / "b" / WEIGHTS), expected)


def test_transformers_loads_the_mixed_dtypes_that_we_write(tensors, tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    qwen3_5.save(qwen3_5.load(written(tmp_path / "a", tensors), dtype="bfloat16"), tmp_path / "b")
    theirs: Any = transformers.Qwen3_5ForConditionalGeneration.from_pretrained(tmp_path / "b", dtype="auto")
    assert theirs.dtype == torch.bfloat16
    same_bytes(
        {name: tensor.float().numpy() for name, tensor in theirs.state_dict().items() if name != "lm_head.weight"},
        {name: tensor.astype(jnp.bfloat16).astype(np.float32) for name, tensor in tensors.items()},
    )


def test_a_bfloat16_checkpoint_can_be_loaded_in_float32(tensors, tmp_path):
    original = published_bfloat16(tensors)
    loaded = qwen3_5.load(written(tmp_path, original))
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(loaded.params["text"]["embed"], original[EMBED].astype(np.float32))


def test_bfloat16_logits_follow_the_float32_ones(model, tensors, tmp_path):
    """Only a smoke test: bfloat16 errs by tenths on so small a model."""
    loaded = qwen3_5.load(written(tmp_path, published_bfloat16(tensors)), dtype="bfloat16")
    inputs = tiny.text_batch((0, 3, 13, 66))
    logits = qwen3_5.forward(loaded, **inputs)
    assert logits.dtype == jnp.float32, "sums of products of bfloat16 numbers are not rounded to it"
    valid = inputs["attention_mask"] != 0
    expected = np.asarray(qwen3_5.forward(model, **inputs))[valid]
    error = np.asarray(logits, np.float32)[valid] - expected
    assert np.sqrt((error**2).mean()) < 0.1 * expected.std()


def test_transformers_and_we_read_each_others_files(model, directory, oracle, tmp_path):
    """We read transformers' files bit for bit; that it reads ours is shown by `oracle`, which was loaded from them."""
    oracle.save_pretrained(tmp_path)
    loaded = qwen3_5.load(tmp_path)
    assert loaded.config == model.config
    same_bytes(hf.tensors(loaded.config, loaded.params), load_file(directory / WEIGHTS))


def test_shards_are_read_through_their_index(model, tensors, tmp_path):
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:40], "model-00002-of-00002.safetensors": names[40:]}
    index = {"weight_map": {name: shard for shard, part in parts.items() for name in part}}
    directory = written(tmp_path, {"left.over": np.zeros(1)}, **{"model.safetensors.index": index})
    for shard, part in parts.items():
        save_file({name: tensors[name] for name in part}, directory / shard)
    loaded = qwen3_5.load(directory)
    np.testing.assert_array_equal(loaded.params["text"]["embed"], model.params["text"]["embed"])


def test_multi_token_prediction_and_a_tied_head_are_passed_over(tensors, tmp_path):
    extra = {"mtp.fc.weight": np.zeros((2, 2), np.float32), "lm_head.weight": tensors[EMBED]}
    qwen3_5.load(written(tmp_path, tensors | extra))


@pytest.mark.parametrize("kind", ["float16", "float64"])
def test_other_floating_point_types_are_converted(kind, tensors, tmp_path):
    loaded = qwen3_5.load(written(tmp_path, {name: tensor.astype(kind) for name, tensor in tensors.items()}))
    np.testing.assert_array_equal(loaded.params["text"]["embed"], tensors[EMBED].astype(kind).astype(np.float32))


def test_parameters_do_not_lie_in_the_file(directory, tmp_path):
    """Loaded parameters do not change with the file, even where NumPy and jax could share its memory."""
    path = tmp_path / WEIGHTS
    path.write_bytes((directory / WEIGHTS).read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(tiny.config_dict()))
    loaded = qwen3_5.load(tmp_path)
    before = jax.tree.map(lambda leaf: np.array(leaf, copy=True), loaded.params)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, before)


def test_loading_compiles_four_programs_and_none_again(directory):
    with compilations() as names:
        qwen3_5.load(directory, dtype="float16")  # no other test loads this dtype
    assert sorted(names) == ["jit(_write)"] * 3 + ["jit(_zeros)"]
    with compilations() as names:
        qwen3_5.load(directory, dtype="float16")
    assert names == []


# ---------------------------------------------------------------- shardings


SHARDED = """
import os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
import jax
from pathlib import Path
import numpy as np
from zppo_jax import parallel
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import vlm

directory, out = map(Path, sys.argv[1:])
plain = qwen3_5.load(directory)
mesh = parallel.make_mesh(data=2, fsdp=2, tensor=2)
shardings = parallel.shardings(mesh, vlm.abstract_params(plain.config), vlm.logical_axes(plain.config))
loaded = qwen3_5.load(directory, mesh=mesh)
jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), loaded.params, plain.params)
assert jax.tree.map(lambda leaf: leaf.sharding, loaded.params) == shardings
divided = [leaf for leaf in jax.tree.leaves(loaded.params) if not leaf.is_fully_replicated]
assert len(divided) > 20, len(divided)
qwen3_5.save(loaded, out)
"""


def test_each_device_gets_its_own_part(directory, tensors, tmp_path):
    """On eight devices the parameters are loaded sharded, equal the unsharded ones, and are written back the same."""
    result = subprocess.run(
        [sys.executable, "-c", SHARDED, str(directory), str(tmp_path / "out")], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    same_bytes(load_file(tmp_path / "out" / WEIGHTS), tensors)


# ---------------------------------------------------------------- mismatches


def test_all_mismatches_are_reported_together(tensors, tmp_path):
    changed = dict(tensors)
    del changed["model.visual.merger.norm.bias"], changed["model.language_model.layers.2.linear_attn.A_log"]
    changed["model.language_model.norm.weight"] = np.zeros(63, np.float32)
    changed["model.language_model.layers.0.linear_attn.conv1d.weight"] = np.zeros((192, 1, 3), np.float16)
    changed["model.language_model.layers.9.mlp.up_proj.weight"] = np.zeros((2, 3), np.float32)
    changed[EMBED] = changed[EMBED].astype(np.int32)
    with pytest.raises(CheckpointError) as error:
        qwen3_5.load(written(tmp_path, changed))
    message = str(error.value)
    for part in (
        str(tmp_path),
        "missing tensor model.visual.merger.norm.bias [32] (for vision/merger/norm/bias)",
        "missing tensor model.language_model.layers.2.linear_attn.A_log [4] (for text/linear/mixer/a_log[0, 2])",
        "model.language_model.norm.weight: F32 [63] does not fit text/norm/weight, which needs [64]",
        "conv1d.weight: F16 [192, 1, 3] does not fit text/linear/mixer/conv[0, 0], which needs [192, 1, 4]",
        "unknown tensor model.language_model.layers.9.mlp.up_proj.weight F32 [2, 3]",
        f"{EMBED}: I32 [512, 64] is not a floating-point tensor",
    ):
        assert part in message
    assert len(message.splitlines()) == 7


def test_mismatches_are_found_before_anything_is_read_or_allocated(tensors, tmp_path, monkeypatch):
    monkeypatch.setattr(reader.Tensor, "view", lambda self: pytest.fail("a tensor was read"))
    monkeypatch.setattr(load, "_empty_stacks", lambda *rest: pytest.fail("parameters were allocated"))
    with pytest.raises(CheckpointError, match="does not fit"):
        qwen3_5.load(written(tmp_path, tensors | {EMBED: np.zeros((512, 63), np.float32)}))
