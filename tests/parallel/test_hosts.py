"""Two processes, four devices each, are one run: they take the decisions that one process takes."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import pytest

from tests import runs

CHANGES: dict[str, Any] = {
    "num_steps": 2,
    "eval__num_questions": 5,
    "eval__every": 2,
    "checkpoint__every": 1,
    "update__rows_per_microbatch": 4,
    "log__tensorboard": False,
}
MESHES = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]


def free_port() -> int:
    with contextlib.closing(socket.socket()) as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


class Run:
    """The command on two hosts that share a run directory."""

    def __init__(self, start: Path, workdir: Path, script: str = "", **changes: Any) -> None:
        cache = jax.config.values["jax_compilation_cache_dir"] or ""
        environment = os.environ | {"PYTHONPATH": str(runs.ROOT)} | runs.quick_environment(cache)
        environment |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
        settings: dict[str, Any] = CHANGES | MESHES | changes
        flags = runs.arguments(start, workdir, "zppo", **settings)
        flags += [f"--coordinator=localhost:{free_port()}", "--num_processes=2"]
        script = script or "from zppo_jax import main; main.main()"
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", script, *flags, f"--process_id={number}"],
                cwd=runs.ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
            for number in range(2)
        ]  # fmt: skip

    def ended(self, timeout: float = 400) -> list[tuple[int, str, str]]:
        """(exit status, standard output, standard error) of both."""
        deadline, found = time.monotonic() + timeout, []
        try:
            for process in self.processes:
                out, error = process.communicate(timeout=max(deadline - time.monotonic(), 1))
                found.append((process.returncode, out, error))
        finally:
            for process in self.processes:
                process.kill()
        return found


def samples(workdir: Path) -> dict[str, dict[str, Any]]:
    """The groups of all hosts by uid."""
    files = [workdir / "samples.jsonl", *sorted(workdir.glob("hosts/*/samples.jsonl"))]
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert len({row["uid"] for row in rows}) == len(rows), "no group is two hosts' own"
    return {row["uid"]: row for row in rows}


@pytest.fixture(scope="module")
def two(start, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two")
    for status, _, error in Run(start, workdir).ended():
        assert status == 0, error[-3000:]
    return workdir


@pytest.fixture(scope="module")
def one(start, tmp_path_factory):
    return runs.run(start, tmp_path_factory.mktemp("one"), **CHANGES)


def test_two_hosts_select_and_learn_what_one_does(one, two):
    """Questions, replayed questions, pre-cap, post-cap, rewards and advantages; evaluation and update as well."""
    expected, found = samples(one), samples(two)
    assert found.keys() == expected.keys()
    for uid, row in expected.items():
        assert {name: found[uid][name] for name in ("prompt", "responses", "rewards")} == {
            name: row[name] for name in ("prompt", "responses", "rewards")
        }, uid
        assert found[uid]["advantages"] == pytest.approx(row["advantages"], abs=1e-5)
    assert {row["kind"] for row in expected.values()} == {"plain", "replay", "bcq", "ncq"}
    assert len((two / "hosts" / "1" / "samples.jsonl").read_text().splitlines()) > 0
    for row, other in zip(runs.metrics(one), runs.metrics(two), strict=True):
        for name in ("rollout/accuracy", "rollout/tokens", "rollout/longest", "replay/size", "eval/accuracy"):
            assert other.get(name) == row.get(name), (row["step"], name)
    for name in ("update/loss", "update/grad_norm", "update/tokens"):
        assert runs.metrics(two)[1][name] == pytest.approx(runs.metrics(one)[1][name], rel=1e-4, abs=1e-6), name
    assert runs.metrics(two)[1]["update/mismatch_abs"] < 1e-5
