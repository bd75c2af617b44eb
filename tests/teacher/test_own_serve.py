"""The served teacher behind our own server, in its own process: it answers as the same weights do in this one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from typing import Any, cast

import pytest

from tests import runs
from tests.test_setup import Names
from zppo_jax import setup
from zppo_jax.compilation import Compiler
from zppo_jax.keys import RandomStream
from zppo_jax.teacher.served import ROLE
from zppo_jax.teacher.teacher import Teacher
from zppo_jax.types import Missed

KEY = "a-key-of-the-server"
TEACHER = runs.ROOT / "zppo_jax" / "assets" / "tiny" / "teacher"
STREAM = RandomStream(0, 1, "teacher")


@pytest.fixture(scope="module")
def server(compilation_folder):
    for library in ("starlette", "uvicorn", "openai"):
        pytest.importorskip(library)
    port = runs.free_port()
    flags = [f"--model={TEACHER}", f"--port={port}", "--num_slots=8", "--max_pixels=4096"]
    process = subprocess.Popen(
        [sys.executable, "-m", "zppo_jax.serve", *flags, "--max_prompt_tokens=512", "--max_new_tokens=16"],
        env=os.environ | {"PYTHONPATH": str(runs.ROOT), "ZPPO_API_KEY": KEY},
        stdout=subprocess.DEVNULL,
    )
    end, ready = time.monotonic() + 240, False
    while not ready:
        assert process.poll() is None and time.monotonic() < end, "the server did not start"
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            ready = urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
    yield f"http://127.0.0.1:{port}/v1"
    process.kill()
    process.wait()


@pytest.fixture
def build(tmp_path, monkeypatch):
    monkeypatch.setenv(ROLE.key_variable, KEY)
    made: list[setup.Components] = []

    def parts_of(**changes: Any) -> tuple[setup.Components, Teacher]:
        sizes = {"rollout__questions_per_step": 4, "teacher__num_rollouts": 2, "rollout__max_new_tokens": 12}
        texts = {"teacher__compress__enabled": True, "teacher__compress__max_tokens": 12}
        config = runs.config(TEACHER, "zppo", **sizes | texts | changes)
        folder = tmp_path / str(len(made))
        folder.mkdir()
        parts, _ = setup.build(config, TEACHER, TEACHER, cast(Compiler, Names()), folder=folder)
        made.append(parts)
        assert parts.teacher is not None
        return parts, parts.teacher.teacher

    yield parts_of
    for parts in made:
        parts.close()


@pytest.mark.slow
@pytest.mark.parametrize("thinking", [True, False])
def test_its_greedy_texts_are_those_of_the_same_weights_in_this_process(build, server, thinking):
    """Questions with an image, and turns of text."""
    same: dict[str, Any] = {"teacher__temperature": 0.0, "prompt__enable_thinking": thinking}
    parts, local = build(**same)
    _, served = build(teacher__path=server, teacher__model="teacher", **same)
    items = list(next(parts.stream).new)
    assert all(item.prompt.question.images for item in items)
    expected, found = (dict(each.answer(items, STREAM)) for each in (local, served))
    assert {uid: list(one) for uid, one in found.items()} == {uid: list(one) for uid, one in expected.items()}
    assert len({one.text for answers in found.values() for one in answers}) > 1, "they are not all one text"
    asks = [f"Write about {number}." for number in range(3)]
    assert list(served.write(asks, STREAM)) == list(local.write(asks, STREAM))


@pytest.mark.slow
def test_its_samples_are_the_same_for_the_same_stream(build, server):
    parts, served = build(teacher__path=server, teacher__model="teacher", teacher__temperature=1.0)
    items = list(next(parts.stream).new)
    first, again, other = (
        dict(served.answer(items, stream)) for stream in (STREAM, STREAM, RandomStream(0, 2, "teacher"))
    )
    assert first == again != other and not any(isinstance(one, Missed) for one in first.values())
    assert any(one[0] != one[1] for one in first.values())
