"""The optimiser's state on eight fake devices: sharded like the parameters, updated in place, nothing gathered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def run(tmp_path: Path, part: str) -> dict[str, Any]:
    out = tmp_path / "result.json"
    command = [sys.executable, "-m", "tests.parallel.optimizer_program", str(out), part]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.slow
def test_the_state_lies_and_stays_where_the_parameters_lie(tmp_path):
    """Moments, Kahan's compensation and the float32 copy; from the beginning and after every update."""
    for name, result in run(tmp_path, "state").items():
        assert result["elsewhere"] == [[], [], [], []], name
        assert result["largest_share"] == 0.5, "no large array lies whole on a device"
        assert result["programs"] == 1, "one program for all updates"
        assert result["bytes_not_in_place"] <= 0, name
        assert result["exchanged"] == {"all-reduce": 1}, "the norm of the gradient; no array and no random bits"
        assert result["differs_from_one_device"] == [], "the lots belong to the elements, not to the devices"


@pytest.mark.slow
def test_the_update_of_a_run_does_so_too(tmp_path):
    result = run(tmp_path, "learner")
    assert result["elsewhere"] == [[], [], []]
    assert result["bytes_not_in_place"] <= 0
    assert result["programs"].count("update") == 1
    assert result["grad_norm"] > 0 and result["moved"] > 0
