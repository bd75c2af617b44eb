"""Loading needs the parameters' own memory, the largest tensor and one layer: measured on a checkpoint of 1.3 GB."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.models import tiny
from zppo_jax.models.qwen3_5 import config as configs
from zppo_jax.models.qwen3_5 import hf
from zppo_jax.models.qwen3_5.hf import reader

pytestmark = pytest.mark.computes

WIDE = tiny.config_dict(
    text__vocab_size=65536,
    text__hidden_size=1536,
    text__intermediate_size=6144,
    text__num_hidden_layers=16,
    text__num_attention_heads=8,
    text__num_key_value_heads=2,
    text__head_dim=128,
    text__linear_num_key_heads=8,
    text__linear_num_value_heads=8,
    text__linear_key_head_dim=128,
    text__linear_value_head_dim=128,
    text__rope_parameters={"rope_theta": 1e7, "partial_rotary_factor": 0.25, "mrope_section": [6, 5, 5]},
    vision__out_hidden_size=1536,
)
NUM_SHARDS = 4
SLACK = 32 * 2**20  # the runtime's own: four programs, the allocators' remains

# glibc learns from the first large block that is freed to keep such blocks (up to 32 MB each, in every thread's heap).
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}

# Loads a small model first, so that jax and LLVM have their one-time memory before the measurement begins.
LOADER = """
import sys
import jax
import numpy as np
from zppo_jax.models import qwen3_5
small, wide = sys.argv[1:]
jax.block_until_ready(qwen3_5.load(small, dtype="bfloat16").params)
print("ready", flush=True)
sys.stdin.readline()
params = qwen3_5.load(wide, dtype="bfloat16").params
jax.block_until_ready(params)
print("loaded", sum(leaf.nbytes for leaf in jax.tree.leaves(params)), flush=True)
last = params["text"]["full"]["mlp"]["down"]["kernel"][3, -1, -1]
assert (float(params["text"]["embed"][-1, -1]), float(last)) == (1.0, 2.0), (params["text"]["embed"][-1, -1], last)
"""
ONES = {"model.language_model.embed_tokens.weight": 1.0, "model.language_model.layers.15.mlp.down_proj.weight": 2.0}


def write_sparse(directory: Path, config: configs.Config) -> None:
    """Writes zeros that need no memory and hardly any disk, except the last element of two tensors."""
    entries, weight_map = list(hf.table(config)), {}
    per_shard = -(-len(entries) // NUM_SHARDS)
    for number in range(NUM_SHARDS):
        file, header, end = f"model-{number}.safetensors", {}, 0
        for entry in entries[number * per_shard : (number + 1) * per_shard]:
            span = [end, end := end + 2 * math.prod(entry.shape_there)]
            header[entry.name] = {"dtype": "BF16", "shape": list(entry.shape_there), "data_offsets": span}
            weight_map[entry.name] = file
        content = json.dumps(header).encode()
        with (directory / file).open("wb") as out:
            out.write(len(content).to_bytes(8, "little") + content)
            out.truncate(8 + len(content) + end)
            for name in ONES.keys() & header.keys():
                out.seek(8 + len(content) + header[name]["data_offsets"][1] - 2)
                out.write(np.asarray(ONES[name], ml_dtypes.bfloat16).tobytes())
    (directory / reader.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (directory / "config.json").write_text(json.dumps(WIDE))


def anonymous(pid: int) -> int:
    """The bytes of a process that no file backs."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields.get("RssAnon", "0 kB").split()[0]) * 1024


def peak_while(process: subprocess.Popen[str]) -> tuple[int, int]:
    """The peak of anonymous memory until the process prints "loaded", and the bytes that it prints."""
    import threading

    line: list[str] = []
    assert process.stdout is not None
    waiting = threading.Thread(target=lambda: line.append(process.stdout.readline()))  # pyright: ignore
    waiting.start()
    peak = 0
    while waiting.is_alive():
        peak = max(peak, anonymous(process.pid))
        time.sleep(0.001)
    word, nbytes = line[0].split()
    assert word == "loaded"
    return peak, int(nbytes)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_loading_needs_the_largest_tensor_and_one_layer_beside_the_parameters(directory, tmp_path):
    config = configs.from_dict(WIDE)
    write_sparse(tmp_path, config)
    tensors = {entry: 2 * math.prod(entry.shape) for entry in hf.table(config)}
    layers: dict[object, int] = {}
    for entry, size in tensors.items():
        if entry.index:
            key = (entry.path.split("/")[1], entry.index)
            layers[key] = layers.get(key, 0) + size
    largest, layer = max(tensors.values()), max(layers.values())
    process = subprocess.Popen(
        [sys.executable, "-c", LOADER, str(directory), str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | GIVE_BACK,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        before = anonymous(process.pid)
        process.stdin.write("go\n")
        process.stdin.flush()
        peak, params = peak_while(process)
        assert process.wait() == 0
    finally:
        process.kill()
        process.communicate()
    extra = peak - before - params
    print(f"\nparameters {params / 1e6:.0f} MB, extra {extra / 1e6:.0f} MB, largest tensor {largest / 1e6:.0f} MB, "
          f"one layer {layer / 1e6:.0f} MB")  # fmt: skip
    assert params > 1e9 and extra > -SLACK
    assert extra <= largest + layer + SLACK
