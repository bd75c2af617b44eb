"""Log-probabilities on eight fake devices equal those on one, and no device makes logits of its vocabulary."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.parallel.program_logprobs import CASES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("logprobs") / "result.json"
    command = [sys.executable, "-m", "tests.parallel.program_logprobs", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Involuntary full rematerialization" not in done.stderr, "the compiler replicates what the rules cut"
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", CASES)
def test_a_mesh_gives_what_one_device_gives(results, name):
    errors = results[name]["errors"]
    print(name, errors)
    assert len(errors) == 4
    assert max(errors.values()) < 1e-5


@pytest.mark.parametrize("name", [name for name in CASES if name != "kept"])
def test_no_device_makes_logits_of_its_part_of_the_vocabulary(results, name):
    result, chunk = results[name], CASES[name].chunk or 0
    scores = result["own_positions"] * chunk
    # If positions do not divide, each device gathers the whole width of its part of the head.
    head = result["own_vocabulary"] * CASES[name].size if "positions" in name else result["own_head"]
    assert result["largest_array"] <= max(scores, head) < result["own_positions"] * result["own_vocabulary"]


@pytest.mark.parametrize("name", [name for name in CASES if name != "kept" and "positions" not in name])
def test_what_travels_is_a_chunk_of_the_head_or_a_gradient_of_hidden_states(results, name):
    result, case = results[name], CASES[name]
    assert 0 < result["largest_exchange"] <= max(case.chunk or 0, result["own_positions"]) * case.size
