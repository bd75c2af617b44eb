"""Writing checkpoints: several files, one final directory, and nothing that only looks complete."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file

from tests.models import tiny
from tests.models.conftest import torch_model
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import CheckpointError, hf
from zppo_jax.models.qwen3_5.hf import reader, save

WEIGHTS = "model.safetensors"


def names(directory):
    """The names of all files in a directory, hidden ones included."""
    return sorted(path.name for path in directory.iterdir())


def test_a_save_holds_what_transformers_needs(model, tmp_path):
    qwen3_5.save(model, tmp_path / "deep" / "out")
    assert names(tmp_path / "deep") == ["out"]
    assert names(tmp_path / "deep" / "out") == ["config.json", "generation_config.json", WEIGHTS]
    generation = json.loads((tmp_path / "deep" / "out" / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [5], "pad_token_id": 5}
    assert reader.metadata(tmp_path / "deep" / "out" / WEIGHTS)["format"] == "pt"
    modes = {path.stat().st_mode for path in (tmp_path / "deep" / "out").iterdir()}
    assert len(modes) == 1, "whoever may read the configuration may read the weights"


@pytest.mark.parametrize("limit", [1, 50_000, 300_000])
def test_a_large_model_is_written_in_shards(limit, model, directory, tmp_path):
    hf.save_directory(tmp_path, model.config, model.params, shard_bytes=limit)
    index = json.loads((tmp_path / reader.INDEX).read_text())
    original = load_file(directory / WEIGHTS)
    shards = sorted(set(index["weight_map"].values()))
    assert shards == [f"model-{n + 1:05}-of-{len(shards):05}.safetensors" for n in range(len(shards))]
    assert names(tmp_path) == sorted([*shards, reader.INDEX, "config.json", "generation_config.json"])
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in original.values())
    read: dict[str, np.ndarray] = {}
    for shard in shards:
        part = load_file(tmp_path / shard)
        assert len(part) == 1 or sum(tensor.nbytes for tensor in part.values()) <= limit
        assert all(index["weight_map"][name] == shard for name in part)
        read |= part
    assert {name: tensor.tobytes() for name, tensor in read.items()} == {
        name: tensor.tobytes() for name, tensor in original.items()
    }
    jax.tree.map(np.testing.assert_array_equal, qwen3_5.load(tmp_path).params, model.params)


def test_transformers_loads_the_shards(model, tmp_path, oracle):
    hf.save_directory(tmp_path, model.config, model.params, shard_bytes=100_000)
    theirs, expected = torch_model(tmp_path).state_dict(), oracle.state_dict()
    assert all((theirs[name] == tensor).all() for name, tensor in expected.items())


def test_another_dtype_spares_what_stays_float32(model, tmp_path):
    hf.save_directory(tmp_path, model.config, model.params, dtype="bfloat16")
    kinds = {name: str(tensor.dtype) for name, tensor in load_file(tmp_path / WEIGHTS).items()}
    kept = {name for name, kind in kinds.items() if kind == "float32"}
    assert kept == {name for name in kinds if name.endswith(("linear_attn.A_log", "linear_attn.norm.weight"))}
    assert set(kinds.values()) == {"float32", "bfloat16"}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


def test_at_most_one_shard_is_in_memory(model, tmp_path, monkeypatch):
    """Each shard is written before the tensors of the next are fetched."""
    fetched, most = 0, 0

    def count(tensor):
        nonlocal fetched, most
        fetched += tensor.nbytes
        most = max(most, fetched)

    def write(part, path, metadata):
        nonlocal fetched
        fetched -= sum(tensor.nbytes for tensor in part.values())
        path.touch()

    monkeypatch.setattr(save, "save_file", write)
    save.write_model(tmp_path, model.config, model.params, shard_bytes=200_000, on_tensor=count)
    assert fetched == 0 and 100_000 < most <= 200_000


# ---------------------------------------------------------------- interruptions


def test_an_error_in_the_middle_leaves_the_old_save_and_nothing_else(model, tmp_path, monkeypatch):
    target = tmp_path / "out"
    qwen3_5.save(model, target)
    before = {name: (target / name).read_bytes() for name in names(target)}

    def fail(*args, **kwargs):
        raise SafetensorError("Error while serializing: IoError(No space left on device)")

    monkeypatch.setattr(save, "save_file", fail)
    with pytest.raises(
        CheckpointError, match=r"out cannot be written \(.*No space left.*\): free some space"
    ) as caught:
        qwen3_5.save(tiny.random_model(seed=9), target)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["out"]
    assert {name: (target / name).read_bytes() for name in names(target)} == before


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.models import tiny
from zppo_jax.models.qwen3_5 import hf

model = tiny.random_model()
with hf.staged(Path(sys.argv[1])) as path:
    tensors = iter(range(60))
    on_tensor = lambda tensor: os.kill(os.getpid(), signal.SIGKILL) if next(tensors) == 50 else None
    hf.write_model(path, model.config, model.params, shard_bytes=100_000, on_tensor=on_tensor)
"""


def test_a_killed_save_leaves_no_directory_that_looks_complete(model, tmp_path):
    target = tmp_path / "out"
    result = subprocess.run([sys.executable, "-c", KILLED, str(target)], capture_output=True, text=True)
    assert result.returncode == -signal.SIGKILL, result.stderr
    [left] = names(tmp_path)
    assert left.startswith(".out.partial-") and list((tmp_path / left).glob("model-00001*"))
    qwen3_5.save(model, target)  # sweeps it away
    assert names(tmp_path) == ["out"]


def test_two_at_once_do_not_meet(model, tmp_path):
    """The one that ends last stays; neither touches the files that the other is writing."""
    target = tmp_path / "out"
    with hf.staged(target) as first, hf.staged(target) as second:
        assert first != second
        for path in (first, second):
            hf.write_model(path, model.config, model.params)
    assert names(tmp_path) == ["out"] and qwen3_5.load(target).config == model.config


def test_too_little_room_is_found_before_anything_is_fetched(model, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100_000})())
    monkeypatch.setattr(save, "iterate", lambda *rest: pytest.fail("tensors were fetched"))
    with pytest.raises(CheckpointError, match=r"the weights need .* GB, .* has 0\.0 GB left: free some space"):
        qwen3_5.save(model, tmp_path / "out")
    assert names(tmp_path) == []


FULL = """
import resource, sys
from tests.models import tiny
from zppo_jax.models import qwen3_5

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    qwen3_5.save(tiny.random_model(), sys.argv[1])
except qwen3_5.CheckpointError as error:
    print(error)
"""


def test_a_write_that_the_system_refuses_is_one_line(tmp_path):
    result = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / "out")], capture_output=True, text=True)
    assert result.stdout.startswith(f"{tmp_path / 'out'} cannot be written ("), result.stderr
    assert len(result.stdout.splitlines()) == 1 and "File too large" in result.stdout
    assert names(tmp_path) == []


# ---------------------------------------------------------------- targets that exist


def test_an_earlier_save_is_replaced_as_a_whole(model, untied_model, tmp_path):
    hf.save_directory(tmp_path / "out", untied_model.config, untied_model.params, shard_bytes=100_000)
    (tmp_path / "out" / "tokenizer.json").write_text("of the earlier one")
    qwen3_5.save(model, tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["config.json", "generation_config.json", WEIGHTS]


@pytest.mark.parametrize("content", ["published", "notes", "pickled", "damaged"])
def test_what_is_not_ours_is_never_replaced(content, model, directory, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    if content == "published":  # the same names as ours, but another writer
        tensors = load_file(directory / WEIGHTS)
        save.save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
    else:
        name = {"notes": "notes.txt", "pickled": "pytorch_model.bin", "damaged": WEIGHTS}[content]
        (target / name).write_text("precious")
    before = {name: (target / name).read_bytes() for name in names(target)}
    with pytest.raises(CheckpointError, match="holds files that zppo_jax did not write: choose a new directory"):
        qwen3_5.save(model, target)
    assert {name: (target / name).read_bytes() for name in names(target)} == before and names(tmp_path) == ["out"]


def test_a_file_in_the_place_is_named(model, tmp_path):
    (tmp_path / "out").write_text("precious")
    with pytest.raises(CheckpointError, match="out is a file: choose a directory"):
        qwen3_5.save(model, tmp_path / "out")


def test_a_link_to_a_directory_is_followed(model, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    qwen3_5.save(model, tmp_path / "out")
    assert (tmp_path / "out").is_symlink() and WEIGHTS in names(tmp_path / "disk")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_without_rights_is_one_line(model, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match="Permission denied"):
        qwen3_5.save(model, tmp_path / "out")


def test_arrays_of_numpy_are_written_as_well(model, directory, tmp_path):
    qwen3_5.save(qwen3_5.Model(model.config, jax.tree.map(np.asarray, model.params)), tmp_path)
    written, expected = load_file(tmp_path / WEIGHTS), load_file(directory / WEIGHTS)
    assert {name: tensor.tobytes() for name, tensor in written.items()} == {
        name: tensor.tobytes() for name, tensor in expected.items()
    }
