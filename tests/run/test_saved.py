"""Damage by the disk is found: a flipped bit in any file of a checkpoint gives one line with the file and the fix."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import runs
from zppo_jax.errors import WorkdirError
from zppo_jax.run import digests, saved
from zppo_jax.run.checkpoint import Checkpoints, equal, restore_params

HOST = {"stream": {"step": 3, "position": 12}}
ABSTRACT = {"a": jax.ShapeDtypeStruct((50, 30), jnp.float32), "b": jax.ShapeDtypeStruct((7,), jnp.bfloat16)}


def state(seed: int):
    params = {name: jax.random.normal(jax.random.key(seed), leaf.shape, leaf.dtype) for name, leaf in ABSTRACT.items()}
    return {"params": params, "count": jnp.int32(seed)}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (3, 6):
            checkpoints.save(step, state(step), HOST, accuracy=step / 7)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "checkpoints")


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def flip(file: Path, rng: np.random.Generator) -> None:
    content = bytearray(file.read_bytes())
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    file.write_bytes(content)


def refusal(folder: Path) -> str:
    with pytest.raises(WorkdirError) as caught:
        saved.newest(folder)
        Checkpoints(folder, 2).restore(state(0))
    return str(caught.value)


@pytest.mark.parametrize("seed", range(3))
def test_a_flipped_bit_in_any_file_is_refused(original, tmp_path, seed):
    """One flip in every file of the newest checkpoint, the file of digests too; none is restored."""
    rng, names = np.random.default_rng(seed), [file.relative_to(original) for file in files(original / "6")]
    assert len(names) > 10
    for name in names:
        folder = shutil.copytree(original, tmp_path / "checkpoints")
        flip(folder / name, rng)
        message = refusal(folder)
        assert "\n" not in message and message.startswith(
            f"the checkpoint {folder / '6'} is damaged ({name.relative_to('6')}: "
        )
        assert message.endswith(": delete it, then the same command continues after step 3")
        shutil.rmtree(folder / "6")  # as the message says
        assert equal(Checkpoints(folder, 2).restore(state(0))[1], state(3))
        shutil.rmtree(folder)


def test_a_flipped_bit_is_not_exported(folder):
    rng = np.random.default_rng(0)
    flip(max(files(folder / "6"), key=lambda file: file.stat().st_size), rng)
    with pytest.raises(WorkdirError, match=r"/6 is damaged \(state/.*: choose another with --step=3$"):
        restore_params(folder, 6, ABSTRACT)
    assert set(restore_params(folder, 3, ABSTRACT)) == {"a", "b"}


def test_the_checkpoint_to_fall_back_to_is_sound_itself(folder):
    for step in ("3", "6"):
        flip(max(files(folder / step), key=lambda file: file.stat().st_size), np.random.default_rng(1))
    assert refusal(folder).endswith("delete it, then the same command starts from the beginning")


@pytest.mark.parametrize("name", ["host/metadata", "state/manifest.ocdbt", "_CHECKPOINT_METADATA", digests.FILE])
def test_a_missing_file_is_refused(folder, name):
    (folder / "6" / name).unlink()
    message = refusal(folder)
    assert name in message and message.endswith("continues after step 3") and "\n" not in message


def test_a_checkpoint_of_an_earlier_version_is_taken_and_said_to_be_unchecked(folder):
    """It has no digests, and its host values do not mention them."""
    for step in ("3", "6"):
        (folder / step / digests.FILE).unlink()
        (folder / step / "host" / "metadata").write_text('{"stream": {"step": 3, "position": 12}}')
    messages: list[str] = []
    step, restored, host = Checkpoints(folder, 2).restore(state(0), messages.append)
    assert step == 6 and equal(restored, state(6)) and host == HOST
    [line] = messages
    assert line.startswith("the checkpoint of step 6 has no digests") and "not checked" in line
    restore_params(folder, 3, ABSTRACT, messages.append)
    assert "of step 3" in messages[1]


def test_one_with_digests_is_not_talked_about(folder):
    messages: list[str] = []
    Checkpoints(folder, 2).restore(state(0), messages.append)
    assert not messages


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="coreutils are not there")
def test_sha256sum_reads_the_digests(folder):
    command = ["sha256sum", "--check", "--strict", "--quiet", digests.FILE]
    assert subprocess.run(command, cwd=folder / "6", check=True, capture_output=True).stderr == b""
    flip(folder / "6" / "_CHECKPOINT_METADATA", np.random.default_rng(0))
    assert subprocess.run(command, cwd=folder / "6", capture_output=True).returncode == 1


def test_readers_share_the_work(folder):
    """One of three readers finds the file that has changed; together they read every file."""
    flip(files(folder / "6" / "state")[0], np.random.default_rng(0))
    faults = [digests.fault(folder / "6", share=(index, 3)) for index in range(3)]
    assert sum(map(bool, faults)) == 1


KILLED = """
import os, pathlib, signal, sys
from tests.run.test_saved import HOST, state
from zppo_jax.run import digests
from zppo_jax.run.checkpoint import Checkpoints

digests.write = lambda folder: os.kill(os.getpid(), signal.SIGKILL)
checkpoints = Checkpoints(pathlib.Path(sys.argv[1]), 3)
checkpoints.save(9, state(9), HOST)
checkpoints.finish()
"""


def test_a_kill_before_the_digests_leaves_no_checkpoint(folder):
    """Killed between Orbax's last file and the digests: the checkpoint never gets its name."""
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder)], cwd=runs.ROOT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["3", "6", "9.complete.orbax-checkpoint-tmp"] and saved.saved_steps(folder) == [3, 6]
    with Checkpoints(folder, 3) as again:  # deletes what was left
        assert again.restore(state(0))[0] == 6
        again.save(9, state(9), HOST)
    assert sorted(path.name for path in folder.iterdir()) == ["3", "6", "9"]
    assert digests.exist(folder / "9")


def test_two_gigabytes_are_checked_in_three_seconds(tmp_path):
    """Half a gigabyte in a quarter of the time, in processor seconds, because others use the machine."""
    content = os.urandom(1 << 20)
    for number in range(4):
        with (tmp_path / str(number)).open("wb") as file:
            for _ in range(128):
                file.write(content)
    digests.write(tmp_path)
    start = time.process_time()
    assert digests.fault(tmp_path) == ""
    assert time.process_time() - start < 0.75


# ---------------------------------------------------------------- folders that are not checkpoints


@pytest.mark.parametrize("step", [1, 7])
def test_an_empty_folder_of_a_step_is_no_checkpoint(folder, step):
    (folder / str(step)).mkdir()
    with pytest.raises(WorkdirError, match=rf"/{step} is damaged \(empty\): delete it, .* continues after step 6$"):
        saved.newest(folder)


@pytest.mark.parametrize("name", ["007", "٣", "7.orbax-checkpoint-tmp", "notes", "-1"])
def test_other_names_are_no_steps(folder, name):
    (folder / name).mkdir()
    assert saved.saved_steps(folder) == [3, 6] and saved.newest(folder)[0] == 6


@pytest.mark.parametrize("content", ["[1]", "null", "{", "\udcff", "[" * 10**5])
def test_odd_host_values_are_one_line(folder, content):
    (folder / "6" / digests.FILE).unlink()
    (folder / "6" / "host" / "metadata").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert "6 is damaged (host/metadata" in refusal(folder)
