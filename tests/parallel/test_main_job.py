"""The main job on eight fake devices does what it does on one."""

from __future__ import annotations

from typing import Any

import pytest

from tests import runs

CHANGES: dict[str, Any] = {"num_steps": 2, "eval__num_questions": 4, "update__rows_per_microbatch": 4}
MESHES = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]


def first_row(start, workdir, **changes: Any) -> dict[str, Any]:
    done = runs.command(runs.arguments(start, workdir, **CHANGES, **changes), timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [row["step"] for row in runs.metrics(workdir)] == [0, 1, 2]
    return runs.metrics(workdir)[1]


def test_two_steps_on_eight_devices(start, tmp_path, monkeypatch):
    """Parameters cut over all three axes, decoding on other meshes, slots filled again, BCQ and NCQ prompts, replay:
    the rollouts of the first step are the same, and so is its update."""
    one = first_row(start, tmp_path / "one")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")
    eight = first_row(start, tmp_path / "eight", **MESHES)
    for name in ("rollout/accuracy", "rollout/tokens", "zppo/bcq_groups", "zppo/ncq_groups", "update/tokens"):
        assert eight[name] == one[name], name
    for name in ("update/loss", "update/grad_norm"):
        assert eight[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), name
    assert eight["update/mismatch_abs"] < 1e-5
