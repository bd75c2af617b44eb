"""One process at a time, one configuration for a run's life, and a stop that finishes the step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from configs import tiny
from zppo_jax.config import from_config_dict, to_json
from zppo_jax.errors import ConfigError, WorkdirError
from zppo_jax.files import probe
from zppo_jax.run.directory import RunDirectory
from zppo_jax.run.stop import StopRequest

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from zppo_jax.run.directory import RunDirectory
with RunDirectory(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def config(**changes):
    tree = tiny.get_config()
    tree.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return from_config_dict(tree)


def python(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_another_process_cannot_have_it_until_this_one_is_gone(tmp_path):
    holder = python(HOLD, tmp_path / "run")
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    for _ in range(2):  # a refused start must not change the lock file
        with pytest.raises(WorkdirError, match=f"in use by process {holder.pid} on ") as caught:
            RunDirectory(tmp_path / "run")
        assert "\n" not in str(caught.value)
    holder.kill()
    holder.communicate()
    RunDirectory(tmp_path / "run").release()


def test_release_lets_go(tmp_path):
    with RunDirectory(tmp_path), pytest.raises(WorkdirError, match="in use"):
        RunDirectory(tmp_path)
    with RunDirectory(tmp_path):
        pass


def test_first_start_writes_the_configuration(tmp_path):
    with RunDirectory(tmp_path / "deep" / "run") as directory:
        directory.accept(config())
    assert json.loads((tmp_path / "deep" / "run" / "config.json").read_text()) == to_json(config())


def test_a_changed_configuration_is_refused_naming_the_keys(tmp_path):
    with RunDirectory(tmp_path) as directory:
        directory.accept(config())
        directory.metrics_file.write_text('{"step": 0}\n')
        with pytest.raises(ConfigError) as caught:
            directory.accept(config(rollout__group_size=4, prompt__buckets=(64,)))
        message = str(caught.value)
        buckets = list(config().prompt.buckets)
        assert f"rollout.group_size (was {config().rollout.group_size}, now 4)" in message
        assert f"prompt.buckets (was {buckets}, now [64])" in message
        assert "\n" not in message and "--workdir" in message
        directory.accept(config())  # the file is as it was


def test_another_machine_may_continue(tmp_path):
    """Keys of the machine, or of what is written, do not make it another run; the mode of sampling does."""
    with RunDirectory(tmp_path) as directory:
        directory.accept(config())
        directory.metrics_file.write_text('{"step": 0}\n')
        other = {"mesh__data": 2, "mesh__fsdp": 4, "rollout__mesh__tensor": 2, "teacher__mesh__data": 2}
        other |= {
            "rollout__slots": 8,
            "update__rows_per_microbatch": 8,
            "update__row_tokens": 512,
            "model__remat": "block",
        }
        other |= {"checkpoint__every": 7, "profile__step": 5, "watchdog__max_skipped": 0, "log__samples_keep": 1}
        directory.accept(config(**other))
        with pytest.raises(ConfigError, match=r"rollout.max_new_tokens \(was"):
            directory.accept(config(**other, rollout__max_new_tokens=17))


def test_a_start_that_came_to_no_row_binds_nobody(tmp_path):
    with RunDirectory(tmp_path) as directory:
        directory.accept(config())
        directory.accept(config(rollout__group_size=4))
    assert json.loads((tmp_path / "config.json").read_text())["rollout"]["group_size"] == 4


def test_the_number_of_steps_may_grow_but_not_fall_behind_the_run(tmp_path):
    with RunDirectory(tmp_path) as directory:
        directory.accept(config(num_steps=10))
        directory.accept(config(num_steps=20), restored_step=10)
        assert json.loads(directory.config_file.read_text())["num_steps"] == 20
        directory.accept(config(num_steps=15), restored_step=15)
        with pytest.raises(ConfigError, match=r"num_steps = 14 is less than the 15 steps .*--config.num_steps=15"):
            directory.accept(config(num_steps=14), restored_step=15)
        assert json.loads(directory.config_file.read_text())["num_steps"] == 15


def test_a_damaged_configuration_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    with RunDirectory(tmp_path) as directory, pytest.raises(WorkdirError, match=r"config\.json is not a configuration"):
        directory.accept(config())


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/zppo")):
        with pytest.raises(WorkdirError, match="cannot be written") as caught:
            RunDirectory(path)
        assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkdirError, match="No space left on device"):
        RunDirectory(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


LOOP = """
import sys, time
from zppo_jax.run.stop import StopRequest
try:
    with StopRequest() as stop:
        print("ready", flush=True)
        for _ in range(3000):
            if stop.requested and sys.argv[1] == "polite":
                print("saved", flush=True)
                break
            time.sleep(0.01)
except KeyboardInterrupt:
    print("at once", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_finishes_the_step(number):
    process = python(LOOP, "polite")
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, error = process.communicate(timeout=20)
    assert (out, process.returncode) == ("saved\n", 0)
    assert "stopping and saving; press again to stop at once" in error


def test_the_second_signal_stops_at_once():
    process = python(LOOP, "busy")
    assert process.stdout is not None and process.stderr is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    while "stopping" not in process.stderr.readline():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[0] == "at once\n"


def test_the_handlers_of_before_come_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert signal.getsignal(signal.SIGINT) != before[0] and not stop.requested
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_blocks_may_end_in_another_order_than_they_began():
    """As runs in the cells of a notebook. A signal reaches the open one, and in the end the handler of before."""
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        outer, inner = StopRequest(), StopRequest()
        outer.__enter__()
        inner.__enter__()
        outer.__exit__(None, None, None)
        signal.raise_signal(signal.SIGINT)
        assert (outer.requested, inner.requested, received) == (False, True, [])
        inner.__exit__(None, None, None)
        signal.raise_signal(signal.SIGINT)
        assert received == [signal.SIGINT] and not outer.requested
    finally:
        signal.signal(signal.SIGINT, before)


def test_hosts_know_whether_they_share_the_directory(tmp_path):
    with RunDirectory(tmp_path / "one") as first, RunDirectory(tmp_path / "other") as other:
        same = RunDirectory(tmp_path / "one", host=1)
        first.require_shared([first.mark, same.mark])
        for mark in (other.mark, RunDirectory(tmp_path / "new", host=1).mark):
            with pytest.raises(WorkdirError, match="not the same directory on host 0 and on host 1: name one that all"):
                first.require_shared([first.mark, mark])


def test_hosts_with_the_same_process_id_write_the_same_file(tmp_path):
    """As in containers, where each is process 1: no host deletes another's temporary file."""
    with ThreadPoolExecutor(8) as threads:
        for _ in range(20):
            assert all(done is None for done in threads.map(lambda _: probe(tmp_path), range(8)))
    assert list(tmp_path.iterdir()) == []
