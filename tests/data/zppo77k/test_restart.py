"""Workers do not change a byte, and a build that was stopped anyhow continues to the same bytes."""

from __future__ import annotations

import io
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.data.zppo77k.conftest import command, files_of
from zppo_jax.data.zppo77k import shards
from zppo_jax.data.zppo77k.recipe import Settings
from zppo_jax.data.zppo77k.scan import Job
from zppo_jax.data.zppo77k.workers import Hashed, Workers
from zppo_jax.errors import ConfigError, RunError

SMALL_SHARDS = "from zppo_jax.data.zppo77k import __main__ as m, shards; shards._ROWS = 4; m.main()"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "_ROWS", 4)


@pytest.fixture(scope="module")
def whole(build, tmp_path_factory):
    """The files of a build that nothing disturbed, with one worker."""
    before, shards._ROWS = shards._ROWS, 4
    build(tmp_path_factory.mktemp("whole") / "out")
    shards._ROWS = before
    found = files_of(tmp_path_factory.getbasetemp() / "whole0" / "out")
    assert len(found) > 8
    return found


def start(corpora, tokenizer, out: Path, *flags: str) -> subprocess.Popen[str]:
    """The command with shards of four rows, in its own process."""
    made = [sys.executable, "-c", SMALL_SHARDS, *corpora.flags, f"--tokenizer={tokenizer}", f"--out={out}", *flags]
    return subprocess.Popen(made, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"X": ""})


def killed(corpora, tokenizer, out: Path, moment: str, *flags: str) -> set[int]:
    """Starts a build and kills it when a file of `moment` is there, again if it was quicker; returns its workers."""
    for _ in range(5):
        shutil.rmtree(out, ignore_errors=True)
        running = start(corpora, tokenizer, out, *flags)
        wait_for(lambda running=running: running.poll() is not None or list((out / ".build").glob(moment)))
        workers = children_of(running.pid)
        running.kill()
        running.communicate()
        if not (out / "dataset.json").exists():
            return workers
    raise AssertionError("the build was done each time")


def wait_for(condition, seconds: float = 120.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "nothing happened"
        time.sleep(0.005)


def children_of(process: int) -> set[int]:
    """The processes whose parent is this one."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process and fields[0] != "Z":
            found.add(int(stat.parent.name))
    return found


def test_workers_do_not_change_the_bytes(build, whole, tmp_path):
    build(tmp_path / "out", workers=2)
    assert files_of(tmp_path / "out") == whole


@pytest.mark.parametrize("moment", ["*.npz", "*.array_record*.json"])
def test_a_killed_build_continues_to_the_same_bytes(build, whole, corpora, tokenizer, tmp_path, moment):
    out = tmp_path / "out"
    workers = killed(corpora, tokenizer, out, moment, "--workers=2")
    assert workers, "there were workers"
    wait_for(lambda: all(not Path(f"/proc/{pid}/cmdline").exists() or not alive(pid) for pid in workers), 20)
    assert not (out / "dataset.json").exists()
    log = io.StringIO()
    build(out, workers=1, log=log)
    assert files_of(out) == whole
    kept = re.findall(r"\((\d+) of an earlier run\)", log.getvalue())
    assert kept and all(int(number) > 0 for number in kept), log.getvalue()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_another_recipe_uses_nothing_of_an_interrupted_build(build, corpora, tokenizer, tmp_path):
    out = tmp_path / "out"
    killed(corpora, tokenizer, out, "*.array_record*.json", "--workers=1", "--seed=5", "--cap_tier1=2")
    build(out)
    build(tmp_path / "fresh")
    assert files_of(out) == files_of(tmp_path / "fresh")


def test_a_full_disk_is_one_line_and_the_build_continues(build, whole, corpora, tokenizer, tmp_path):
    out = tmp_path / "out"
    flags = [*corpora.flags, f"--tokenizer={tokenizer}", f"--out={out}", "--workers=1"]

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    ended = subprocess.run(command(*flags), capture_output=True, text=True, preexec_fn=limit, check=False)
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert re.search(r"array_record.*cannot be written \(.*File too large.*\): free some space", last), ended.stderr
    assert "Traceback" not in ended.stderr
    build(out)
    assert files_of(out) == whole


def test_ctrl_c_ends_it_in_one_line(corpora, tokenizer, tmp_path):
    code, errors = 0, ""
    for attempt in range(5):  # on a busy machine a build may end before the signal comes
        out = tmp_path / f"out-{attempt}"
        running = start(corpora, tokenizer, out, "--workers=2")
        wait_for(lambda out=out: (out / ".build").exists())  # its workers start: they need seconds
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=60)
        if code := running.returncode:
            break
    assert code == 130
    assert errors.strip().splitlines()[-1] == "zppo_jax: stopped; the same command continues"
    assert "Traceback" not in errors


def test_a_worker_that_is_killed_ends_the_build_in_one_line(tmp_path):
    job = Job(Settings(), (), frozenset(), "")
    for name in "abc":
        os.mkfifo(tmp_path / name)  # reading it waits for ever
    with Workers(2, job) as workers:

        def kill() -> None:
            wait_for(lambda: workers._pool is not None and len(workers._pool._processes or {}) == 2)
            assert workers._pool is not None
            for process in list(workers._pool._processes.values()):
                process.kill()

        threading.Thread(target=kill).start()
        with pytest.raises(RunError, match="fewer --workers"):
            list(workers.run([Hashed(str(tmp_path / name)) for name in "abc"]))


def test_two_builds_do_not_share_a_folder(build, corpora, tokenizer, tmp_path):
    out = tmp_path / "out"
    running = start(corpora, tokenizer, out, "--workers=1")
    wait_for(lambda: list((out / ".build").glob("*.npz")) if out.exists() else [])
    running.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(ConfigError, match="is being built by another process"):
            build(out)
    finally:
        running.send_signal(signal.SIGCONT)
        running.communicate()
    assert (out / "dataset.json").exists()
