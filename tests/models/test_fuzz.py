"""Whatever the JSON files of a directory hold, the model loads, or is refused in one line."""

from __future__ import annotations

import json
import shutil
import time

import jax
import numpy as np
import pytest

from tests import fuzzing
from tests.models.test_reader import raw_file
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import CheckpointError
from zppo_jax.models.qwen3_5.hf import reader

WEIGHTS = "model.safetensors"


def _message_start(error: Exception) -> Exception:
    """The first line of an error: CheckpointError lists every mismatch on a separate line."""
    return ValueError(str(error).split("\n")[0]) if isinstance(error, CheckpointError) else error


@pytest.mark.parametrize(("name", "times"), [("config.json", 250), ("generation_config.json", 60), (reader.INDEX, 80)])
def test_a_changed_file_is_loaded_or_refused_in_one_line(name, times, directory, tmp_path):
    directory = shutil.copytree(directory, tmp_path / "checkpoint")
    path = directory / name
    if name == reader.INDEX:
        weight_map = dict.fromkeys(reader.tensors(directory), WEIGHTS)
        path.write_text(json.dumps({"metadata": dict.fromkeys("abcdefghijklmnopqrstuvwxyz"), "weight_map": weight_map}))
    if name == "generation_config.json":
        path.write_text(json.dumps({"eos_token_id": [5, 6], "pad_token_id": 3}))
    shapes = jax.tree.map(lambda leaf: leaf.shape, qwen3_5.load(directory).params)
    rng, original = np.random.default_rng(0), path.read_text()
    outcomes = {True: 0, False: 0}
    for _ in range(times):
        text = fuzzing.change_file(path, original, rng)
        start = time.process_time()
        try:
            model = qwen3_5.load(directory)
        except (ValueError, FileNotFoundError) as error:
            fuzzing.assert_one_line(_message_start(error), "")
            outcomes[False] += 1
        else:
            assert jax.tree.map(lambda leaf: leaf.shape, model.params) == shapes, text
            assert all(0 <= token < 2**31 for token in (*model.config.stop_token_ids, model.config.pad_token_id)), text
            outcomes[True] += 1
        assert time.process_time() - start < 3, text
    assert min(outcomes.values()) > 0, outcomes


def test_a_changed_header_is_read_or_refused_in_one_line(tmp_path):
    header = {
        "__metadata__": {"format": "pt"},
        "x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "y": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [24, 28]},
        "z": {"dtype": "BF16", "shape": [], "data_offsets": [28, 30]},
    }
    rng, read = np.random.default_rng(0), 0
    for _ in range(600):
        path = raw_file(tmp_path / WEIGHTS, fuzzing.changed(header, rng), bytes(30))
        try:
            found = reader.header(path)
            reader.metadata(path)
        except CheckpointError as error:
            fuzzing.assert_one_line(error, path)
        else:
            assert all(tensor.view().nbytes == tensor.nbytes <= 30 for tensor in found.values())
            read += 1
    assert 10 < read < 590
