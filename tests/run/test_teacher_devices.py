"""Runs whose teacher has separate devices, on four fake devices: in a process, and over two hosts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests import runs
from tests.parallel import test_hosts

CHANGES: dict[str, Any] = {
    "num_steps": 3,
    "checkpoint__every": 1,
    "eval__every": 3,
    "eval__num_questions": 4,
    "teacher__devices": 2,
    "teacher__num_rollouts": 8,  # a prompt fills the slots: the first hard question is a batch
    "teacher__scope": "all_hard",
    "log__tensorboard": False,
}

FOUR_DEVICES = """
import json, os, re, sys, threading, time
import jax
jax.config.update("jax_num_cpu_devices", 4)
from tests import runs
from zppo_jax import main
from zppo_jax.actors import student
from zppo_jax.rollout import sample
from zppo_jax.run.console import RunConsole

events, begun = [], threading.Event()
in_lane, gather, status = sample._in_lane, student.gather_cohort, RunConsole.status

def watched(engine, params, requests):
    events.append([engine.name, len(requests), sorted(device.id for device in engine.compiler.mesh.devices.flat)])
    begun.set()
    return in_lane(engine, params, requests)

def gathered(groups, hosts, what, order=None):
    events.append(what)
    return gather(groups, hosts, what, order)

def slow(self, line):
    found = re.match(r"rollouts (\\d+)/20 ", line)  # of the second step: five questions, three of them hard
    if found and int(found[1]) >= 12 and threading.current_thread() is threading.main_thread():
        begun.wait(60)
    if found is None:
        begun.clear()
    status(self, line)

sample._in_lane, student.gather_cohort, RunConsole.status = watched, gathered, slow
def killed(step):
    while step == 2 and os.environ.get("KILLED"):
        if os.path.exists(os.environ["KILLED"]):
            os._exit(9)
        time.sleep(0.01)

try:
    with runs.undrawn(), runs.after_row(killed):
        main.main()
finally:
    print("events", json.dumps(events))
"""
"""The command. In the second step the student's rollouts are held up until the teacher has begun, which it does at once
if it can. With KILLED, the process ends after the row of that step, when this file is there."""

SAME_END = """
import sys
from pathlib import Path
import jax
jax.config.update("jax_num_cpu_devices", 4)  # those of the checkpoints
from tests import runs
runs.assert_same_end(*map(Path, sys.argv[1:]), 3)
"""

pytestmark = pytest.mark.slow


def run(start, workdir, **changes: Any) -> list[Any]:
    """Runs the command; returns what was begun in the lane, and what the student had ended."""
    done = runs.command(runs.arguments(start, workdir, "zppo", **(CHANGES | changes)), FOUR_DEVICES)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "on separate devices: mesh data 1 x fsdp 1 x tensor 2" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("events ")]
    return json.loads(line.removeprefix("events "))


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, run(start, workdir)


def test_the_teacher_begins_before_the_students_rollouts_have_ended(whole):
    _, events = whole
    second = events.index("the student rollouts", events.index("the student rollouts") + 1)
    before = [one for one in events[events.index("the reformulated rollouts") : second] if not isinstance(one, str)]
    assert before and all(name == "teacher's " and count == 1 for name, count, _ in before)
    worked = [one for one in events if not isinstance(one, str)]
    assert all(devices == [2, 3] for _, _, devices in worked), "the last devices of the host"


def test_a_run_that_is_killed_and_continued_ends_alike(start, whole, tmp_path, monkeypatch):
    """From the checkpoint of the first step: the second one is made again, with the same batches."""
    workdir, events = whole
    monkeypatch.setenv("KILLED", str(tmp_path / "checkpoints" / "1"))
    done = runs.command(runs.arguments(start, tmp_path, "zppo", **CHANGES), FOUR_DEVICES)
    assert done.returncode == 9 and runs.saved_steps(tmp_path) == [1], done.stderr[-3000:]
    monkeypatch.delenv("KILLED")
    again = run(start, tmp_path)
    done = runs.command([str(tmp_path), str(workdir)], SAME_END)
    assert done.returncode == 0, done.stderr[-3000:]
    second = events.index("the reformulated rollouts") + 1
    jobs, jobs_again = ([one for one in found if not isinstance(one, str)] for found in (events[second:], again))
    assert jobs and jobs_again == jobs, "the thread that begins a job depends on the clock, the jobs do not"


def test_two_hosts_ask_their_own_teachers_and_select_what_one_process_does(start, tmp_path):
    """Three devices of each host are the run's, one the teacher's."""
    meshes: dict[str, Any] = {"mesh__data": -1, "mesh__fsdp": 1, "mesh__tensor": 1, "teacher__devices": 1}
    changes: dict[str, Any] = CHANGES | test_hosts.CHANGES | {"num_steps": 1, "teacher__num_rollouts": 4}
    alone: dict[str, Any] = changes | {"teacher__devices": 0}
    apart: dict[str, Any] = changes | meshes
    one = runs.run(start, tmp_path / "one", "zppo", **alone)
    with test_hosts.Run(start, tmp_path / "two", "", **apart) as run:
        for status, _, error in run.ended():
            assert status == 0, error[-3000:]
    expected, found = test_hosts.samples(one), test_hosts.samples(tmp_path / "two")
    assert found.keys() == expected.keys() and {row["kind"] for row in found.values()} >= {"plain", "ncq"}
    for uid, row in expected.items():
        assert {name: found[uid][name] for name in ("prompt", "responses", "rewards")} == {
            name: row[name] for name in ("prompt", "responses", "rewards")
        }, uid
    assert (tmp_path / "two" / "hosts" / "1" / "samples.jsonl").read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher__devices": 4}, "teacher.devices = 4 leaves nothing for the run where a host has 4: lower it to 3"),
        (
            {"teacher__devices": 2, "mesh__fsdp": 4},
            "mesh: mesh data=1 x fsdp=4 x tensor=1 does not use 2 devices exactly",
        ),
        ({"teacher__devices": 3, "teacher__mesh__tensor": 2}, "teacher.mesh: mesh data=-1 x fsdp=1 x tensor=2 does"),
    ],
)
def test_too_many_devices_are_refused_in_one_line(start, tmp_path, changes, words):
    done = runs.command(runs.arguments(start, tmp_path, "zppo", **(CHANGES | changes)), FOUR_DEVICES)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
