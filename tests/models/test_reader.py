"""The files of a checkpoint: sound ones are mapped as safetensors reads them, damaged or hostile ones are named."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.models import tiny
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import CheckpointError
from zppo_jax.models.qwen3_5.hf import hub, reader

WEIGHTS = "model.safetensors"
EMBED = "model.language_model.embed_tokens.weight"


def raw_file(path, header, data=b"", length=None):
    """A safetensors file of any header: a dict, text or bytes."""
    content = (
        header if isinstance(header, bytes) else (json.dumps(header) if isinstance(header, dict) else header).encode()
    )
    length = len(content) if length is None else length
    path.write_bytes(length.to_bytes(8, "little") + content + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


# ---------------------------------------------------------------- sound files


@pytest.mark.parametrize(
    "kind", [np.bool_, np.uint8, np.int16, np.int64, np.float16, np.float32, np.float64, ml_dtypes.bfloat16]
)
def test_tensors_are_read_as_safetensors_reads_them(kind, tmp_path):
    rng = np.random.default_rng(0)
    original = {
        f"t{n}": rng.integers(0, 2, shape).astype(kind) for n, shape in enumerate([(), (3,), (2, 5, 7), (0, 4)])
    }
    save_file(original, tmp_path / WEIGHTS, metadata={"format": "pt"})
    found = reader.header(tmp_path / WEIGHTS)
    assert set(found) == set(original)
    for name, tensor in load_file(tmp_path / WEIGHTS).items():
        value = found[name].view()
        assert (value.dtype, value.shape, value.tobytes()) == (tensor.dtype, tensor.shape, tensor.tobytes())
        assert not value.size or not value.flags.writeable
    assert reader.metadata(tmp_path / WEIGHTS) == {"format": "pt"}


@pytest.mark.parametrize(("name", "kind"), [("F8_E4M3", ml_dtypes.float8_e4m3fn), ("F8_E5M2", ml_dtypes.float8_e5m2)])
def test_float8_is_read_which_safetensors_numpy_reader_refuses(name, kind, tmp_path):
    data = bytes(range(256))
    path = raw_file(tmp_path / WEIGHTS, {"x": entry(name, (16, 16), (0, 256))}, data)
    value = reader.header(path)["x"].view()
    assert value.dtype == kind and value.tobytes() == data
    torch = pytest.importorskip("torch")
    with safe_open(path, framework="pt") as file:
        expected = file.get_tensor("x").to(torch.float32).numpy()
    np.testing.assert_array_equal(value.astype(np.float32), expected)


def test_shards_are_read_through_their_index(directory, tmp_path):
    tensors = load_file(directory / WEIGHTS)
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:40], "model-00002-of-00002.safetensors": names[40:]}
    for shard, part in parts.items():
        save_file({name: tensors[name] for name in part}, tmp_path / shard)
    save_file({"left.over": np.zeros(1)}, tmp_path / WEIGHTS)  # the index does not name it
    write_index(tmp_path, {name: shard for shard, part in parts.items() for name in part})
    found = reader.tensors(tmp_path)
    assert sorted(found) == names
    np.testing.assert_array_equal(found[EMBED].view(), tensors[EMBED])


# ---------------------------------------------------------------- damaged files


@pytest.fixture
def checkpoint(directory, tmp_path):
    """A separate sound checkpoint, to be damaged."""
    return shutil.copytree(directory, tmp_path / "checkpoint")


def refused(directory, error: type[Exception] = CheckpointError):
    """The message with which a directory is refused; it must name the file and the fix."""
    with pytest.raises(error) as caught:
        qwen3_5.load(directory)
    message = str(caught.value)
    assert str(directory) in message and "\n" not in message and len(message) < 1000
    return message


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_a_truncated_file_is_named(keep, checkpoint):
    path = checkpoint / WEIGHTS
    size = path.stat().st_size
    os.truncate(path, int(size * keep) if isinstance(keep, float) else keep % size)
    message = refused(checkpoint)
    assert message.startswith(f"{path} is damaged or cut short") and message.endswith("download or write it again")


def test_bytes_behind_the_end_are_refused(checkpoint):
    with (checkpoint / WEIGHTS).open("ab") as file:
        file.write(b"x")
    assert "of data, it has" in refused(checkpoint)


HOSTILE = {
    "a header as long as the address space": (raw_file, {"header": {}, "length": 2**63}),
    "a header longer than the file": (raw_file, {"header": {}, "length": 100}),
    "no JSON": (raw_file, {"header": "{"}),
    "no UTF-8": (raw_file, {"header": b"\xff\xfe"}),
    "no object": (raw_file, {"header": "[1]"}),
    "deep nesting": (raw_file, {"header": "[" * 200_000}),
    "a number of many digits": (raw_file, {"header": '{"x": ' + "9" * 5000 + "}"}),
    "no entry": (raw_file, {"header": {"x": 7}}),
    "a missing field": (raw_file, {"header": {"x": {"dtype": "F32", "shape": [2]}}, "data": bytes(8)}),
    "a negative size": (raw_file, {"header": {"x": entry(shape=(-2,))}, "data": bytes(8)}),
    "a size that is not a number": (raw_file, {"header": {"x": entry(shape=("2",))}, "data": bytes(8)}),
    "a size that is a truth value": (raw_file, {"header": {"x": entry(shape=(True, 2))}, "data": bytes(8)}),
    "a shape that overflows": (raw_file, {"header": {"x": entry(shape=(2**62, 2**62, 4))}, "data": bytes(8)}),
    "a shape larger than its data": (raw_file, {"header": {"x": entry(shape=(10**12,))}, "data": bytes(8)}),
    "offsets beyond the file": (raw_file, {"header": {"x": entry(offsets=(80, 88))}, "data": bytes(8)}),
    "offsets backwards": (raw_file, {"header": {"x": entry(offsets=(8, 0))}, "data": bytes(8)}),
    "three offsets": (raw_file, {"header": {"x": entry(offsets=(0, 8, 8))}, "data": bytes(8)}),
    "a gap": (raw_file, {"header": {"x": entry(offsets=(8, 16))}, "data": bytes(16)}),
    "an overlap": (raw_file, {"header": {"x": entry(), "y": entry(offsets=(4, 12))}, "data": bytes(12)}),
    "one place twice": (raw_file, {"header": {"x": entry(), "y": entry()}, "data": bytes(8)}),
    "a name twice": (raw_file, {"header": '{"x": {}, "x": {}}'}),
    "an unknown dtype": (raw_file, {"header": {"x": entry("F4", (16,))}, "data": bytes(8)}),
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_a_hostile_header_is_refused_in_one_line(fault, checkpoint):
    write, arguments = HOSTILE[fault]
    write(checkpoint / WEIGHTS, **arguments)
    assert str(checkpoint / WEIGHTS) in refused(checkpoint)


HUGE = {
    "a list": lambda: '{"x": [' + "1," * 30_000_000 + "1]}",
    "objects": lambda: '{"x": [' + "{}," * 20_000_000 + "{}]}",
    "a million tensors": lambda: "{" + ",".join(f'"t{n}": {{"dtype": "F32"}}' for n in range(1_000_000)) + "}",
    "a shape": lambda: '{"x": {"dtype": "F32", "data_offsets": [0, 4], "shape": [' + "9," * 240_000 + "9]}}",
    "a nest": lambda: '{"x": ' + "[" * 400_000 + "]" * 400_000 + "}",
    "a name": lambda: '{"' + "x" * 60_000_000 + '": {"dtype": "F32", "data_offsets": [0, 4], "shape": [2]}}',
}


@pytest.mark.parametrize("kind", HUGE)
def test_a_huge_header_is_refused_at_once(kind, tmp_path):
    path = raw_file(tmp_path / WEIGHTS, HUGE[kind](), bytes(4))
    start = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        reader.header(path)
    assert time.process_time() - start < 3 and len(str(caught.value)) < 600 and str(path) in str(caught.value)


SMALL = {"x": entry(), "y": entry("BF16", (2, 2), (8, 16)), "__metadata__": {"format": "pt"}}


@given(place=st.integers(0, len(json.dumps(SMALL)) + 7), value=st.binary(min_size=1, max_size=4))
def test_whatever_changes_in_a_header_no_tensor_leaves_the_file(place, value, tmp_path_factory):
    path = raw_file(tmp_path_factory.getbasetemp() / "fuzz.safetensors", SMALL, bytes(range(16)))
    content = bytearray(path.read_bytes())
    content[place : place + len(value)] = value
    path.write_bytes(content)
    try:
        found = reader.header(path)
    except CheckpointError as error:
        assert str(path) in str(error)
    else:
        assert all(tensor.view().nbytes == tensor.nbytes <= 16 for tensor in found.values())


# ---------------------------------------------------------------- the choice of files


def write_index(directory, weight_map):
    (directory / reader.INDEX).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/outside.safetensors", "sub/inside.safetensors", ".."])
def test_an_index_may_not_leave_its_directory(name, checkpoint):
    (checkpoint / "sub").mkdir()
    for target in (checkpoint.parent / "outside.safetensors", checkpoint / "sub" / "inside.safetensors"):
        shutil.copy(checkpoint / WEIGHTS, target)
    write_index(checkpoint, {EMBED: name})
    assert "leaves the directory" in refused(checkpoint)


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '"x"', "{", "[" * 200_000, '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": "x"}'],
)
def test_a_damaged_index_is_named(content, checkpoint):
    (checkpoint / reader.INDEX).write_text(content)
    assert f"{reader.INDEX} is damaged" in refused(checkpoint)


@pytest.mark.parametrize("shard", [7, [7], None, "model.bin"])
def test_an_index_of_other_things_than_safetensors_files_is_refused(shard, checkpoint):
    write_index(checkpoint, {EMBED: shard})
    assert "not a safetensors file" in refused(checkpoint)


def test_an_index_must_agree_with_its_shards(checkpoint):
    names = list(load_file(checkpoint / WEIGHTS))
    write_index(checkpoint, dict.fromkeys([*names[1:], "one.more"], WEIGHTS))
    assert f"disagree on 2 tensors: {min(names[0], 'one.more')} is in" in refused(checkpoint)


def test_a_missing_shard_is_named(checkpoint):
    write_index(checkpoint, {EMBED: "model-00001-of-00001.safetensors"})
    assert "lacks model-00001-of-00001.safetensors" in refused(checkpoint, FileNotFoundError)


def test_a_tensor_in_two_shards_is_reported(checkpoint):
    (checkpoint / WEIGHTS).rename(checkpoint / "model-00001-of-00002.safetensors")
    save_file({EMBED: np.zeros((512, 64), np.float32)}, checkpoint / "model-00002-of-00002.safetensors")
    assert f"tensor {EMBED} occurs in" in refused(checkpoint)


BESIDE = ("adapter_model.safetensors", "consolidated.safetensors", "consolidated-00001-of-00002.safetensors")
"""Weights that training programs and publishers leave next to a model's; each holds a name of the model's."""


@pytest.mark.parametrize("layout", ["single", "index", "shards"])
def test_weights_beside_the_model_are_not_read(layout, checkpoint, model):
    if layout != "single":
        (checkpoint / WEIGHTS).rename(checkpoint / "model-00001-of-00001.safetensors")
    if layout == "index":
        write_index(checkpoint, dict.fromkeys(reader.tensors(checkpoint), "model-00001-of-00001.safetensors"))
    for name in BESIDE:
        save_file({EMBED: np.zeros((2, 2), np.float32)}, checkpoint / name)
    for name in ("optimizer.pt", "training_args.bin", "optimizer.bin"):
        (checkpoint / name).write_bytes(b"no pickle")
    (checkpoint / "adapter_config.json").write_text("{}")
    loaded = qwen3_5.load(checkpoint).params["text"]["embed"]
    np.testing.assert_array_equal(loaded, model.params["text"]["embed"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adapter_model.safetensors", "an adapter and not a model: merge it"),
        ("adapter_model.bin", "an adapter and not a model: merge it"),
        ("adapter_config.json", "an adapter and not a model: merge it"),
        ("consolidated.safetensors", "not the name of a model's weights: give a directory with model.safetensors or"),
    ],
)
def test_a_directory_without_the_model_says_what_it_holds(name, words, checkpoint):
    (checkpoint / WEIGHTS).rename(checkpoint / name)
    message = refused(checkpoint, FileNotFoundError)
    assert f"no model.safetensors in {checkpoint} but {name}, which is {words}" in message


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", None])
def test_pickled_weights_are_never_loaded(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tiny.config_dict()))
    if name:
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    message = refused(tmp_path, FileNotFoundError)
    assert f"no {WEIGHTS} in" in message
    assert (f"{name}, which is pickled and never loaded" in message) == (name is not None)
    assert not (tmp_path / "exploded").exists()


# ---------------------------------------------------------------- the Hub


@pytest.fixture
def cache(directory, tmp_path, monkeypatch):
    """The Hub's cache with one repository in it, and no network (tests/conftest.py)."""
    import huggingface_hub.constants

    repository = tmp_path / "models--Qwen--Qwen3.5-Tiny"
    shutil.copytree(directory, repository / "snapshots" / "0123456789abcdef")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123456789abcdef")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_a_name_of_the_hub_is_found_in_its_cache(cache, model, monkeypatch, tmp_path):
    assert qwen3_5.load("Qwen/Qwen3.5-Tiny").config == model.config
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen" / "Qwen3.5-Tiny").mkdir(parents=True)
    assert hub.resolve("Qwen/Qwen3.5-Tiny") == hub.Path("Qwen/Qwen3.5-Tiny"), "a local directory wins"


@pytest.mark.parametrize("name", ["Qwen/Qwen3.5-0.8B", "/no/such/directory", "no-such-directory", "../x/y", "a/b/c"])
def test_what_is_neither_here_nor_on_the_hub_is_one_line(name, cache):
    with pytest.raises(FileNotFoundError, match=f"there is no directory '{name}'") as caught:
        qwen3_5.load(name)
    assert "\n" not in str(caught.value) and "give" in str(caught.value)
    assert ("hf download" in str(caught.value)) == (name == "Qwen/Qwen3.5-0.8B")


def test_neither_pickle_nor_code_is_downloaded(monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    wanted = [
        *("config.json", "generation_config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"),
        *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "chat_template.jinja"),
        *("preprocessor_config.json", "video_preprocessor_config.json"),
    ]
    others = ["pytorch_model.bin", "modeling_x.py", "model.pt", "original/params.json", "README.md", "x.gguf"]
    others += BESIDE
    asked = {}
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **patterns: asked.update(patterns) or str(tmp_path)
    )
    assert hub.resolve("a/b") == tmp_path
    assert list(filter_repo_objects(wanted + others, **asked)) == wanted
