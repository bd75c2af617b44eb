"""Unexpected files in a run directory: a start ends with one line that names the file, or goes on; nothing is lost."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from tests import runs
from tests.run.test_directory import HOLD, config, python
from tests.run.test_rows import ROWS, refusal
from zppo_jax import command
from zppo_jax.config import binding, to_json
from zppo_jax.errors import ConfigError, WorkdirError
from zppo_jax.files import sweep
from zppo_jax.run.checkpoint import Checkpoints
from zppo_jax.run.directory import RunDirectory, require_name
from zppo_jax.run.metrics_file import MetricsWriter
from zppo_jax.run.samples import SampleWriter

STATE = {"params": {"x": jnp.ones(3)}}


def start_on(path: Path, saved: dict[str, Any] | None = None, **changes: Any) -> None:
    """Does what a start does before it loads a model, with a checkpoint of step 3."""
    with RunDirectory(path) as directory:
        directory.accept(config(**changes), 3, saved)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["sweep[1]", "a*b", "who?", "back\\slash", "two\nlines", "\udcff"])
def test_a_name_with_which_checkpoints_cannot_be_restored_is_refused(tmp_path, name):
    for path in (tmp_path / name, tmp_path / name / "run"):
        assert "in its name, with which checkpoints cannot be restored" in refusal(RunDirectory, path)
    assert list(tmp_path.iterdir()) == []
    assert refusal(require_name, tmp_path / name, "--checkpoint").startswith("--checkpoint=")


@pytest.mark.parametrize("name", ["a b", "a%20b", "{x}", "$HOME", "~", "a]b", "日", "it's", 'say "x"', "a#b", "7"])
def test_with_other_names_a_checkpoint_is_restored(tmp_path, name):
    require_name(tmp_path / name, "--workdir")
    with Checkpoints(tmp_path / name, 1) as checkpoints:
        checkpoints.save(1, STATE, {"a": 2})
    assert Checkpoints(tmp_path / name, 1).restore(STATE)[2] == {"a": 2}


def test_what_is_saved_is_read_back(tmp_path):
    """If the name was not refused: the save fails, and not only the restore after the run."""
    checkpoints = Checkpoints(tmp_path / "sweep[1]", 1)
    checkpoints.save(1, STATE, {})
    assert "checkpoint 1 cannot be read back from" in refusal(checkpoints.finish)
    assert checkpoints.latest_step is None


# ---------------------------------------------------------------- the lock


def test_a_deleted_lock_file_lets_nobody_in(tmp_path):
    holder = python(HOLD, tmp_path)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    (tmp_path / ".lock").unlink()
    assert "is in use by another process" in refusal(RunDirectory, tmp_path)
    assert not (tmp_path / ".lock").exists()
    holder.kill()
    holder.communicate()
    RunDirectory(tmp_path).release()


def test_a_lock_file_of_odd_bytes_is_written_anew(tmp_path):
    (tmp_path / ".lock").write_bytes(b"\xff\x00")
    with RunDirectory(tmp_path) as directory:
        assert directory.mark.startswith(f"process {os.getpid()} on ")
        (tmp_path / ".lock").write_bytes(b"\xff")
        assert "is in use by another process" in refusal(RunDirectory, tmp_path)


@pytest.mark.parametrize("kind", ["folder", "dangling", "link", "pipe"])
def test_a_lock_file_that_is_none_is_one_line(tmp_path, kind):
    lock = tmp_path / ".lock"
    if kind == "folder":
        lock.mkdir()
    elif kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.symlink_to(tmp_path / "file")
        (tmp_path / "file").write_text("mine") if kind == "link" else None
    assert ".lock is not a file of this program" in refusal(RunDirectory, tmp_path)
    shutil.rmtree(lock) if kind == "folder" else lock.unlink()
    RunDirectory(tmp_path).release()
    assert not (tmp_path / "file").exists() or (tmp_path / "file").read_text() == "mine"


KILLED = """
import os, pathlib, signal, sys
from zppo_jax import files

os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
files.probe(pathlib.Path(sys.argv[1]))
"""


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path):
    kept = [".probe-mine", "..probe-1.tmp", ".notes.tmp", "metrics.jsonl", ".config.json.0123.tmp"]
    for folder in (tmp_path, tmp_path / "checkpoints"):
        folder.mkdir(exist_ok=True)
        killed = subprocess.run([sys.executable, "-c", KILLED, str(folder)], cwd=runs.ROOT)
        assert killed.returncode == -signal.SIGKILL
        (folder / f".probe-{'a' * 32}").write_text("probe")
        (folder / f".metrics.jsonl.{'b' * 32}.tmp").write_text("half")
        for name in kept:
            (folder / name).write_text("kept")
    assert len(list(tmp_path.glob("..probe-*.tmp"))) == 2
    with RunDirectory(tmp_path), pytest.raises(WorkdirError):
        (left := tmp_path / f".probe-{'c' * 32}").write_text("of whoever holds it")
        try:
            RunDirectory(tmp_path)
        finally:
            assert left.exists()
            left.unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, ".lock", "checkpoints"])
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == sorted(kept)
    sweep(tmp_path / "nowhere")


# ---------------------------------------------------------------- config.json


@pytest.mark.parametrize("content", [b"[1]", b"null", b"", b"{", b'{"a": "\xff"}', b"[" * 10**5, b'"seed"'])
def test_an_odd_configuration_is_one_line(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    assert "config.json is not a configuration (" in refusal(start_on, tmp_path)
    assert (tmp_path / "config.json").read_bytes() == content


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "samples.jsonl"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_one_line(tmp_path, name, make):
    make(tmp_path / name)

    def begin() -> None:
        start_on(tmp_path, binding(config()))
        MetricsWriter(tmp_path).truncate(3)
        SampleWriter(tmp_path, 1.0, 1).truncate(3)

    assert f"{name} is not a file (a folder, or a device)" in refusal(begin)


def test_a_section_that_is_none_is_a_change(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(to_json(config()) | {"rollout": 5}))
    assert "another version of zppo_jax: the key rollout.group_size is not in both" in refusal(start_on, tmp_path)


def test_a_run_of_an_earlier_version_is_refused_by_the_key_that_it_did_not_know(tmp_path):
    values = to_json(config())
    del values["update"]["old_logprobs"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    line = refusal(start_on, tmp_path)
    assert "another version of zppo_jax: the key update.old_logprobs is not in both configurations" in line
    assert "set the old value" not in line


def test_without_config_json_the_checkpoint_says_what_the_run_is(tmp_path):
    saved = binding(config())
    assert "seed (was 0, now 1)" in refusal(start_on, tmp_path, saved, seed=1)
    assert not (tmp_path / "config.json").exists()
    start_on(tmp_path, saved, checkpoint__every=7)
    assert json.loads((tmp_path / "config.json").read_text())["checkpoint"]["every"] == 7


def test_an_edited_config_json_does_not_change_the_run(tmp_path):
    start_on(tmp_path, binding(config()))
    (tmp_path / "config.json").write_text(json.dumps(to_json(config(seed=1))))
    assert "seed (was 0, now 1)" in refusal(start_on, tmp_path, binding(config()), seed=1)


def test_a_run_that_nothing_describes_is_refused(tmp_path):
    """A checkpoint of an earlier version, or rows without any checkpoint: they may belong to another run."""
    assert "holds a run without its config.json: put that back" in refusal(start_on, tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(ROWS)
    with RunDirectory(tmp_path) as directory:
        assert "without its config.json" in refusal(directory.accept, config())
    assert (tmp_path / "metrics.jsonl").read_bytes() == ROWS


@contextlib.contextmanager
def other_user() -> Iterator[None]:
    """Runs as another user, to whom permissions apply."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_that_may_not_be_read_is_one_line():
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        (Path(name) / "config.json").write_text("{}")
        os.chmod(Path(name) / "config.json", 0)
        with other_user():
            assert "config.json cannot be read (Permission denied)" in refusal(start_on, Path(name))


# ---------------------------------------------------------------- real runs


def test_errors_of_the_disk_are_one_line_in_the_run_directory_alone(tmp_path):
    (tmp_path / "run" / "curves.png").mkdir(parents=True)
    for path, words in (
        (tmp_path / "run" / "curves.png", "curves.png: Is a directory; move it away"),
        (tmp_path, None),
    ):
        with pytest.raises(OSError) as caught:
            path.write_bytes(b"")
        line = command.disk_fault(caught.value, tmp_path / "run")
        assert line is None if words is None else words in (line or "")
    with pytest.raises(OSError) as caught:
        (tmp_path / "run" / "gone").read_bytes()
    assert "gone: No such file or directory; it was deleted" in (
        command.disk_fault(caught.value, tmp_path / "run") or ""
    )
    assert "free some space" in (command.disk_fault(OSError(28, "full"), tmp_path) or "")
    assert command.disk_fault(ValueError(), tmp_path) is None


def spoil(run: Path, name: str) -> None:
    if name == "checkpoints":
        shutil.rmtree(run / name)
        (run / name).write_text("a file")
    elif name == "curves.png":
        (run / name).unlink()
        (run / name).mkdir()
    elif name == "checkpoints/7":
        (run / name).mkdir()
    else:
        content = (run / name).read_bytes()
        (run / name).write_bytes(b"\xff" + content[1:])


SPOILT = {
    "checkpoints": "checkpoints is not a folder: move it away",
    "checkpoints/7": "checkpoints/7 is damaged (empty): delete it, then the same command continues after step 6",
    "curves.png": "curves.png: Is a directory; move it away",
    "metrics.jsonl": "metrics.jsonl, line 1 is damaged (",
}


UNCOMPILED = """
from zppo_jax import main
from zppo_jax.compilation import Compiler
Compiler._compile = lambda *_: None
main.main()
"""
"""The command, which compiles nothing: a run that has made all its steps calls no program, but would wait for them."""


@pytest.mark.parametrize("name", SPOILT)
def test_the_command_says_it_in_one_line(straight, start, tmp_path, name):
    run = shutil.copytree(straight, tmp_path / "run")
    spoil(run, name)
    result = runs.command(runs.arguments(start, run), UNCOMPILED)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert result.returncode == 1 and len(lines) == 1, result.stderr
    assert SPOILT[name] in lines[0]


def test_a_deleted_config_json_binds_as_before(straight, start, tmp_path):
    run = shutil.copytree(straight, tmp_path / "run")
    (run / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"seed \(was 0, now 1\)"):
        runs.run(start, run, seed=1)
    runs.run(start, run)
    assert (run / "config.json").read_bytes() == (straight / "config.json").read_bytes()
    runs.assert_same_end(run, straight, runs.SETTINGS["num_steps"])


def test_lost_metrics_are_said_and_the_run_goes_on(straight, start, tmp_path, capsys):
    run = shutil.copytree(straight, tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    runs.run(start, run, drawn=True)
    out = capsys.readouterr().out
    assert "metrics.jsonl ends before step 6" in out and "no curves: " in out
