"""The model on eight fake devices, in one process and in two, equals the model on one device."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """The file of what one device computes: the first program that needs it makes it."""
    return tmp_path_factory.mktemp("one") / "device.npz"


def run(one: Path, devices: int, mesh: tuple[int, int, int], *flags: str, num_processes: int = 1) -> dict:
    out = one.with_name("-".join(map(str, (num_processes, *mesh))) + ".json")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.parallel.program", *flags, *map(str, (devices, *mesh, out, one))]
    # The test is how XLA partitions programs for the mesh, not the machine code.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    others = [
        [str(process), str(num_processes), str(port)] if num_processes > 1 else [] for process in range(num_processes)
    ]
    started = [
        subprocess.Popen(command + other, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for other in others
    ]
    try:
        for process in started:
            said = process.communicate(timeout=300)[0].decode()
            assert process.returncode == 0, said[-3000:]
            assert "Involuntary full rematerialization" not in said, "the compiler replicates what the rules cut"
    finally:
        for process in started:
            process.kill()
    return json.loads(out.read_text())


def test_another_mesh_for_decoding(tmp_path):
    """Parameters cut over four devices, rows over eight: weights are gathered once, and no step exchanges anything."""
    out = tmp_path / "result.json"
    subprocess.run([sys.executable, "-m", "tests.parallel.decoding", str(out)], cwd=ROOT, check=True, timeout=300)
    result = json.loads(out.read_text())
    for name, found in result.items():
        assert found["tokens"] == 1.0 and found["logprobs"] < TOLERANCE, (name, found)
    trained, whole, cut = (result[name] for name in ("(2, 4, 1)", "(8, 1, 1)", "(2, 1, 4)"))
    assert trained["largest"] > 10_000, "a chunk gathers weights"
    assert whole["largest"] < 1_000 and not whole["in_a_step"], "tokens alone, after the last step"
    assert cut["in_a_step"] and cut["largest"] < 10_000, "activations in every step, no weight"
    assert whole["weights"] > 3.5 * trained["weights"], "whole on every device"
    assert cut["weights"] < 0.5 * whole["weights"]


def check(result: dict) -> None:
    assert result["logits"] < TOLERANCE
    assert result["gradients"] < TOLERANCE
    assert result["logprobs"] < TOLERANCE
    assert result["equal_tokens"] == 1.0


def test_forward_gradients_and_decoding_on_a_mesh(one):
    result = run(one, 8, (2, 2, 2), "--collectives")
    print({name: result[name] for name in ("logits", "gradients", "logprobs")})
    check(result)
    assert result["undivided"] == []
    # Sums over heads and inner widths; of the vocabulary (512) only sums and maxima. No weight travels (4,096 elements
    # and more), no logits of all rows (8 x 512), and nothing for "has every row stopped", which the host knows.
    assert {operation: size <= 8 * 64 for operation, size in result["collectives_of_a_step"].items()} == {
        "all-reduce": True,
        "all-gather": True,
    }
    assert result["largest_share"] == 0.5, "no large parameter lies whole on a device; half: fsdp or tensor"
    assert "P('tensor', 'fsdp')" in result["cut"], "embedding: vocabulary over tensor, width over fsdp"


@pytest.mark.slow
def test_heads_that_do_not_divide_are_replicated_and_said(one):
    """Two key-value heads and two key heads over a tensor axis of four."""
    result = run(one, 8, (1, 2, 4))
    check(result)
    assert (
        "text/full/mixer/k/kernel: axis kv_heads of size 2 is not divided by tensor=4: replicated"
        in result["undivided"]
    )
    assert any("linear_heads of size 2" in line for line in result["undivided"])
    assert not any("mlp" in line for line in result["undivided"])


@pytest.mark.slow
def test_two_processes_on_one_host(one):
    check(run(one, 4, (2, 2, 2), num_processes=2))
