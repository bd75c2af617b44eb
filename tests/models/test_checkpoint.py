"""Hugging Face checkpoints in and out: bytes, dtypes, and damage that must be named."""

from __future__ import annotations

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.models import tiny
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import CheckpointError, hf

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
    """As published: bfloat16, but A_log and the gated norm's weight in float32."""
    return {name: tensor if name.endswith(KEPT) else tensor.astype(jnp.bfloat16) for name, tensor in tensors.items()}


# ---------------------------------------------------------------- round trips


def test_load_and_save_give_the_same_bytes_back(model, directory, tensors, tmp_path):
    loaded = qwen3_5.load(directory)
    assert loaded.config == model.config
    for path, leaf in hf.flatten(loaded.params).items():
        np.testing.assert_array_equal(leaf, hf.flatten(model.params)[path], err_msg=path)
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


def test_a_wholly_bfloat16_checkpoint_comes_back_as_it_was(tensors, tmp_path):
    """What transformers writes after from_pretrained(dtype=bfloat16), which casts A_log as well."""
    original = {name: tensor.astype(jnp.bfloat16) for name, tensor in tensors.items()}
    qwen3_5.save(qwen3_5.load(written(tmp_path / "a", original), dtype="bfloat16"), tmp_path / "b")
    same_bytes(load_file(tmp_path / "b" / WEIGHTS), original)


def test_a_bfloat16_checkpoint_can_be_loaded_in_float32(tensors, tmp_path):
    original = published_bfloat16(tensors)
    loaded = qwen3_5.load(written(tmp_path, original))
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(loaded.params["text"]["embed"], original[EMBED].astype(np.float32))


def test_bfloat16_logits_follow_the_float32_ones(model, tensors, tmp_path):
    """Only the sign of life: bfloat16 errs by tenths on so small a model."""
    loaded = qwen3_5.load(written(tmp_path, published_bfloat16(tensors)), dtype="bfloat16")
    inputs = tiny.text_batch((0, 3, 13, 66))
    logits = qwen3_5.forward(loaded, **inputs)
    assert logits.dtype == jnp.bfloat16
    valid = inputs["attention_mask"] != 0
    expected = np.asarray(qwen3_5.forward(model, **inputs))[valid]
    error = np.asarray(logits, np.float32)[valid] - expected
    assert np.sqrt((error**2).mean()) < 0.1 * expected.std()


def test_transformers_and_we_read_each_others_files(model, directory, oracle, tmp_path):
    """What transformers writes is read bit for bit; that it reads what we write is how `oracle` was made."""
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


# ---------------------------------------------------------------- damage


def test_a_tensor_in_two_files_is_reported(tensors, tmp_path):
    directory = written(tmp_path, tensors)
    save_file({EMBED: tensors[EMBED]}, directory / "copy.safetensors")
    with pytest.raises(CheckpointError, match=f"{EMBED} occurs in more than one file"):
        qwen3_5.load(directory)


def test_all_mismatches_are_reported_together(tensors, tmp_path):
    changed = dict(tensors)
    del changed["model.visual.merger.norm.bias"], changed["model.language_model.layers.2.linear_attn.A_log"]
    changed["model.language_model.norm.weight"] = np.zeros(63, np.float32)
    changed["model.language_model.layers.0.linear_attn.conv1d.weight"] = np.zeros((192, 1, 3), np.float32)
    changed["model.language_model.layers.9.mlp.up_proj.weight"] = np.zeros((2, 3), np.float32)
    with pytest.raises(CheckpointError) as error:
        qwen3_5.load(written(tmp_path, changed))
    message = str(error.value)
    for part in (
        str(tmp_path),
        "missing tensor model.visual.merger.norm.bias",
        "missing tensor model.language_model.layers.2.linear_attn.A_log",
        "model.language_model.norm.weight: [63] does not fit text/norm/weight[] [64]",
        "layers.0.linear_attn.conv1d.weight: [3, 192] does not fit",
        "unknown tensor model.language_model.layers.9.mlp.up_proj.weight [2, 3]",
    ):
        assert part in message
    assert len(message.splitlines()) == 6


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_a_truncated_file_is_named(keep, directory, tensors, tmp_path):
    path = written(tmp_path / "cut", tensors) / WEIGHTS
    size = path.stat().st_size
    os.truncate(path, int(size * keep) if isinstance(keep, float) else keep % size)
    with pytest.raises(CheckpointError) as error:
        qwen3_5.load(tmp_path / "cut")
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/outside.safetensors", "sub/inside.safetensors", ".."])
def test_an_index_may_not_leave_its_directory(name, tensors, tmp_path):
    directory = written(tmp_path / "inside", tensors, **{"model.safetensors.index": {"weight_map": {EMBED: name}}})
    (directory / "sub").mkdir()
    for target in (tmp_path / "outside.safetensors", directory / "sub" / "inside.safetensors"):
        save_file(tensors, target)
    with pytest.raises(CheckpointError, match="leaves the directory"):
        qwen3_5.load(directory)


@pytest.mark.parametrize(
    "index", [[], {}, "x", {"weight_map": {EMBED: 7}}, {"weight_map": {EMBED: [7]}}, {"weight_map": {}}]
)
def test_a_damaged_index_is_named(index, tensors, tmp_path):
    directory = written(tmp_path, tensors, **{"model.safetensors.index": index})
    with pytest.raises(CheckpointError, match=r"index\.json"):
        qwen3_5.load(directory)


def test_missing_files_are_named(tensors, tmp_path):
    index = {"weight_map": {EMBED: "model-00001-of-00001.safetensors"}}
    directory = written(tmp_path / "shard", tensors, **{"model.safetensors.index": index})
    with pytest.raises(FileNotFoundError, match="model-00001-of-00001"):
        qwen3_5.load(directory)
    bare = written(tmp_path / "bare", tensors)
    (bare / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match="safetensors"):
        qwen3_5.load(bare)


def test_an_interrupted_save_leaves_the_old_file(model, directory, tensors, tmp_path, monkeypatch):
    qwen3_5.save(model, tmp_path)

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(hf, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        qwen3_5.save(tiny.random_model(seed=9), tmp_path)
    same_bytes(load_file(tmp_path / WEIGHTS), tensors)
