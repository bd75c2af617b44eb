"""Two processes, four devices each, are one run: they make the same decisions as one process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from tests import runs

CHANGES: dict[str, Any] = {
    "num_steps": 2,
    "eval__num_questions": 5,
    "eval__every": 2,
    "checkpoint__every": 1,
    "update__num_minibatches": 1,
    "update__rows_per_microbatch": 4,
    "log__tensorboard": False,
}
LOSS_ROUNDING = 1e-6
"""The loss is what is left of terms of size 1, each an advantage times a ratio that differs from 1 by the 3e-7 by which
log-probabilities of float32 are rounded (`update/log_ratio_abs`)."""
MESHES = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}

pytestmark = pytest.mark.slow


class Run:
    """The command on two hosts that share a run directory."""

    def __init__(self, start: Path, workdir: Path, script: str = "", **changes: Any) -> None:
        environment = os.environ | {"PYTHONPATH": str(runs.ROOT)}
        environment |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
        settings: dict[str, Any] = CHANGES | MESHES | changes
        flags = runs.arguments(start, workdir, "zppo", **settings)
        flags += [f"--coordinator=localhost:{runs.free_port()}", "--num_processes=2"]
        script = script or "from zppo_jax import main; main.main()"
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", script, *flags, f"--process_id={number}"],
                cwd=runs.ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
            for number in range(2)
        ]  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def ended(self, timeout: float = 400) -> list[tuple[int, str, str]]:
        """(exit status, standard output, standard error) of both."""
        deadline, found = time.monotonic() + timeout, []
        for process in self.processes:
            out, error = process.communicate(timeout=max(deadline - time.monotonic(), 1))
            found.append((process.returncode, out, error))
        return found


def samples(workdir: Path) -> dict[str, dict[str, Any]]:
    """The groups of all hosts by uid."""
    files = [workdir / "samples.jsonl", *sorted(workdir.glob("hosts/*/samples.jsonl"))]
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert len({row["uid"] for row in rows}) == len(rows), "no group is two hosts' own"
    return {row["uid"]: row for row in rows}


WATCHED = """
import os, signal, sys
import jax, numpy as np
from tests import runs
from zppo_jax import main
from zppo_jax.actors import student
from zppo_jax.run.checkpoint import Checkpoints

def whole(leaf):
    found, there = np.empty(leaf.shape, leaf.dtype), np.zeros(leaf.shape, bool)
    for shard in leaf.addressable_shards:
        found[shard.index], there[shard.index] = shard.data, True
    assert there.all(), "the hosts differ in the axis `data`, along which nothing of the state is cut"
    return found

def dump(self, name, state):
    leaves = {jax.tree_util.keystr(path): whole(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    if jax.process_index() == 0:
        np.savez(self._directory.parent / f"{name}.npz", **leaves)

save, restore, gather_cohort, steps = Checkpoints.save, Checkpoints.restore, student.gather_cohort, []

def save_and_dump(self, step, state, host, accuracy=None):
    dump(self, f"saved-{step}", state)
    save(self, step, state, host, accuracy)

def restore_and_dump(self, state, *rest):
    step, state, host = restore(self, state, *rest)
    dump(self, f"restored-{step}", state)
    return step, state, host

def gather(groups, hosts, what, order=None):
    steps.extend([len(steps)] * (order is None))  # the plain rollouts of a step
    if "--process_id=1" in sys.argv and order is None and len(steps) == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return gather_cohort(groups, hosts, what, order)

Checkpoints.save, Checkpoints.restore, student.gather_cohort = save_and_dump, restore_and_dump, gather
with runs.undrawn():
    main.main()
"""
"""The command, which dumps the whole state whenever it saves or restores one; the second host gets a signal to stop in
the middle of its second step."""


@pytest.fixture(scope="module")
def two(start, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two")
    with Run(start, workdir, WATCHED, num_steps=3) as run:
        for status, _, error in run.ended():
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
        for name in ("rollout/accuracy", "rollout/tokens", "rollout/longest", "replay/size"):
            assert other.get(name) == row.get(name), (row["step"], name)
    assert runs.metrics(two)[0]["eval/accuracy"] == runs.metrics(one)[0]["eval/accuracy"]
    for name in ("update/loss", "update/grad_norm", "update/tokens"):
        expected_value = pytest.approx(runs.metrics(one)[1][name], rel=1e-5, abs=LOSS_ROUNDING)
        assert runs.metrics(two)[1][name] == expected_value, name
    assert runs.metrics(two)[1]["update/mismatch_abs"] < 1e-5


def test_what_one_host_is_asked_both_do(two):
    """SIGTERM to the second host in step 2 of 3: both save after that step."""
    assert runs.saved_steps(two) == [1, 2] and runs.metrics(two)[-1]["step"] == 2


def test_one_process_continues_what_two_have_begun(start, two, tmp_path):
    """From their first checkpoint: one process on one device reads the same bits, and makes the same next step."""
    workdir = shutil.copytree(two, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "2")
    done = runs.command(runs.arguments(start, workdir, "zppo", **CHANGES), WATCHED)
    assert done.returncode == 0, done.stderr[-3000:]
    saved, restored = (np.load(workdir / f"{name}-1.npz") for name in ("saved", "restored"))
    assert saved.files == restored.files and len(saved.files) > 100
    assert all(saved[name].tobytes() == restored[name].tobytes() for name in saved.files)
    rows, expected = runs.metrics(workdir), runs.metrics(two)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert samples(workdir).keys() == samples(two).keys()
    for name in ("rollout/accuracy", "rollout/tokens", "zppo/ncq_groups", "replay/size", "update/tokens"):
        assert rows[2][name] == expected[2][name], name
    for name in ("update/loss", "update/grad_norm"):
        assert rows[2][name] == pytest.approx(expected[2][name], rel=1e-5, abs=LOSS_ROUNDING), name
    apart = differences(workdir / "saved-2.npz", two / "saved-2.npz")
    assert apart["optimizer"].max() < 1e-6, "the moments, hence the gradient"
    assert apart["params"].max() < 1e-4, "where AdamW divides one rounding by another, at a rate of 1e-3"
    assert np.mean(apart["params"] > 1e-5) < 1e-4


def differences(one: Path, other: Path) -> dict[str, np.ndarray]:
    """The differences between two dumped states, of parameters and of the optimiser."""
    first, second = np.load(one), np.load(other)
    parts: dict[str, list[np.ndarray]] = {"params": [], "optimizer": []}
    for name in first.files:
        part = "params" if name.startswith("['params']") else "optimizer"
        parts[part].append(np.abs(first[name].astype(np.float64) - second[name].astype(np.float64)).reshape(-1))
    return {part: np.concatenate(found) for part, found in parts.items()}


STUCK = """
import sys, time
from zppo_jax import parallel

number = int(sys.argv[2])
parallel.connect(sys.argv[1], 2, number)
hosts = parallel.Hosts.all(3.0)
assert hosts.gather({"number": number}, "a first meeting") == [{"number": 0}, {"number": 1}]
assert hosts.gather_dealt(list("ace" if number == 0 else "bd"), "a second") == list("abcde")
try:
    with hosts.together("a third"):
        assert number == 0, "no place"
except parallel.HostError as error:
    print(error, flush=True)
except AssertionError:
    pass
if number == 1:
    time.sleep(60)
try:
    hosts.gather(None, "the plain rollouts")
except parallel.HostError as error:
    print(error, flush=True)
"""


def pair(script: str, *arguments: str) -> list[subprocess.Popen[str]]:
    """Starts two processes without a model, each with the coordinator's address, its number and the arguments."""
    environment = os.environ | {"PYTHONPATH": str(runs.ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", script, f"localhost:{runs.free_port()}"]
    return [
        subprocess.Popen([*command, str(number), *arguments], env=environment, text=True, stdout=subprocess.PIPE)
        for number in (0, 1)
    ]


def test_a_host_that_hangs_or_fails_is_named():
    """Each host reports the other's failure."""
    processes = pair(STUCK)
    assert processes[0].stdout is not None
    lines = (line for line in processes[0].stdout if "Gloo" not in line)
    said = [next(lines), next(lines)]
    for process in processes:
        process.kill()
    assert said[0] == "a third failed on host 1: AssertionError: no place\n"
    assert said[1].startswith(
        "host 1 did not come to the plain rollouts within 3 s, or is gone; host 0 waits no longer"
    )


GONE = """
import os, signal, sys
import numpy as np
from jax.experimental import multihost_utils
from zppo_jax import parallel
from zppo_jax.parallel import hosts as module

module.ROLL_CALL_SECONDS = 5.0
number = int(sys.argv[2])
parallel.connect(sys.argv[1], 2, number)
hosts = parallel.Hosts.all(60.0)
assert hosts.gather(number, "a meeting") == [0, 1]
try:
    with hosts.watched():
        raise ValueError("no business of the other host")
except ValueError as error:
    print(error, flush=True)
if number == 1:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    with hosts.watched():
        multihost_utils.process_allgather(np.zeros(1000))
except parallel.HostError as error:
    print(error, flush=True)
os._exit(0)
"""


def test_a_host_that_dies_is_named_by_those_that_work_with_it():
    processes = pair(GONE)
    out, _ = processes[0].communicate(timeout=120)
    processes[1].wait()
    first, second = (line for line in out.splitlines() if not line.startswith("[Gloo]") and line)
    assert first == "no business of the other host"
    assert second.startswith("host 1 is gone, as host 0 found out when it worked with it")


def test_hosts_with_different_configurations_do_not_begin(start, tmp_path):
    """The second host gets another learning rate: both report it in one line, and nothing is written."""
    other = "import sys; sys.argv += ['--config.optimizer.learning_rate=0.01'] * ('--process_id=1' in sys.argv); "
    with Run(start, tmp_path / "run", other + "from zppo_jax import main; main.main()") as run:
        ended = run.ended(120)
    for status, _, error in ended:
        assert status == 2, error
        line = error.splitlines()[-1]
        assert "optimizer.learning_rate = 0.001 on host 0 and 0.01 on host 1: start the same program" in line
    assert not (tmp_path / "run").exists()


SAVING = """
import pathlib, sys
import jax, numpy as np
from zppo_jax.run import checkpoint
from zppo_jax import parallel
from zppo_jax.errors import WorkdirError

number, folder = int(sys.argv[2]), pathlib.Path(sys.argv[3])
parallel.connect(sys.argv[1], 2, number)
hosts = parallel.Hosts.all(60.0)
mesh = jax.make_mesh((2,), ("x",))
half = jax.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
values = jax.make_array_from_callback((8,), half, lambda index: np.arange(8.0, dtype=np.float32)[index])
state = {"params": {"x": values}}
checkpoints = checkpoint.Checkpoints(folder, 3, hosts=hosts)

def failing(*_):
    raise OSError("no room on this one")

def attempt(action, *arguments):
    try:
        action(*arguments)
        print("done", flush=True)
    except WorkdirError as error:
        print(error, flush=True)

probe = checkpoint.probe
checkpoint.probe = failing if number == 1 else probe
attempt(checkpoints.save, 1, state, {})
checkpoint.probe = probe
attempt(checkpoints.save, 2, state, {})
attempt(checkpoints.finish)
attempt(checkpoints.save, 3, state, {})
if number == 1:
    checkpoints._manager.wait_until_finished = failing
checkpoints.check()
attempt(checkpoints.save, 4, state, {})
attempt(checkpoints.save, 5, state, {})
attempt(checkpoints.finish)
attempt(checkpoints.save, 5, state, {})
restored = checkpoints.restore(state)
print(restored[0], np.asarray(restored[1]["params"]["x"].addressable_shards[0].data).tolist(), flush=True)
checkpoints.close()
"""


def test_what_one_host_cannot_save_none_has_saved(tmp_path):
    """Both get the error at once and go on; the next checkpoint is both hosts' again."""
    processes = pair(SAVING, str(tmp_path / "checkpoints"))
    said = [
        [line for line in process.communicate(timeout=120)[0].splitlines() if "Gloo" not in line]
        for process in processes
    ]
    for number, lines in enumerate(said):
        first, second, finished, third, fourth, *others = lines
        assert (second, finished, third) == ("done", "done", "done")
        for line, step in ((first, 1), (fourth, 3)):
            assert line.startswith("host 1: " * (number == 0) + f"the checkpoint of step {step} cannot be written to ")
            assert "OSError: no room on this one" in line
        assert others == ["done", "done", "done", f"5 {[[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]][number]}"]
