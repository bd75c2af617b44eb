"""The log while a command imports, loads and compiles: real commands whose output is a pipe."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tests import runs
from zppo_jax.command.heartbeat import Heartbeat
from zppo_jax.compilation import Compiler
from zppo_jax.models import qwen3_5
from zppo_jax.warmstart import tiny

QUICK = """
from zppo_jax.command.heartbeat import Heartbeat
Heartbeat.first = Heartbeat.interval = 0.02
from zppo_jax.{module} import main
main()
"""
"""The real command; only the time between two lines is changed."""


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(Heartbeat, "first", 0.02)
    monkeypatch.setattr(Heartbeat, "interval", 0.02)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A model of 60 MB in 253 tensors: large enough that loading it takes several lines."""
    directory = tmp_path_factory.mktemp("large")
    processor = tiny.processor()
    config = tiny.config(processor)
    text = dataclasses.replace(config.text, num_hidden_layers=16, hidden_size=256, intermediate_size=768)
    config = dataclasses.replace(config, text=text, vision=dataclasses.replace(config.vision, out_hidden_size=256))
    shapes = qwen3_5.abstract_params(config)
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, leaf.dtype), shapes)
    qwen3_5.save(qwen3_5.Model(config, params), directory)
    processor.save(directory)
    return directory


@dataclasses.dataclass
class Said:
    """The lines, and the seconds after the start at which each came through the pipe."""

    lines: list[str]
    seconds: list[float]

    def matching(self, pattern: str) -> list[re.Match[str]]:
        return [found for line in self.lines if (found := re.search(pattern, line))]


def said(cache: Path, script: str, *arguments: object, until: str) -> Said:
    """The output and errors of a command, up to a line with `until`."""
    start, found = time.monotonic(), Said([], [])
    with subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=runs.ROOT, env=os.environ | {"PYTHONPATH": str(runs.ROOT), "JAX_COMPILATION_CACHE_DIR": str(cache)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            found.lines.append(line.rstrip("\n"))
            found.seconds.append(time.monotonic() - start)
            if until in line:
                process.kill()
    assert process.returncode == -9, "\n".join(found.lines)
    return found


def test_the_first_line_of_a_training_comes_before_jax(compilation_folder, tmp_path):
    """With the times of a normal run; 1 s if nothing else runs."""
    script = "from zppo_jax.main import main; main()"
    config = runs.ROOT / "configs" / "tiny.py"
    arguments = (f"--config={config}", f"--workdir={tmp_path / 'run'}")
    found = said(compilation_folder, script, *arguments, until="importing jax")
    assert found.lines == [found.lines[-1]] and found.lines[0].startswith(f"starting zppo in {tmp_path / 'run'}: ")
    assert found.seconds[0] < 10


def test_a_training_says_what_it_loads_and_compiles(compilation_folder, tmp_path, large):
    """Lines appear during the work, with its progress."""
    config = runs.ROOT / "configs" / "tiny.py"
    arguments = (f"--config={config}", f"--workdir={tmp_path / 'run'}", f"--config.model.path={large}")
    found = said(compilation_folder, QUICK.format(module="main"), *arguments, until="programs ready")
    assert found.matching("^starting zppo .*importing jax and the trainer, \\d+ s$")
    loading = found.matching(rf"loading model.path={large}, \d+ s: (\d+) of (\d+) tensors, (0\.\d\d) of (0\.\d\d) GB")
    counts = [int(each[1]) for each in loading]
    assert len(set(counts)) > 2 and counts == sorted(counts) and {each[2] for each in loading} == {loading[0][2]}
    size = (large / "model.safetensors").stat().st_size
    assert float(loading[0][4]) == pytest.approx(size / 1e9, abs=0.006)
    assert found.matching(r"\d+ of \d+ programs ready, compiling \w+.* \(\d+ s\)$")
    assert found.seconds[-1] - found.seconds[0] > 0.5, "they came at the end, all at once"


def test_generate_says_so_until_it_samples(compilation_folder, large):
    arguments = (f"--model={large}", "--prompt=one", "--num_samples=1", "--max_new_tokens=2")
    found = said(compilation_folder, QUICK.format(module="generate.__main__"), *arguments, until="programs ready")
    assert found.matching("^starting: importing jax, 0 s$")
    assert found.matching(rf"^loading {large}, \d+ s: \d+ of \d+ tensors")
    assert found.matching(r"^waiting for \w.*; \d of \d programs ready, compiling ")


def test_serve_says_so_until_it_serves(compilation_folder, large):
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    sizes = ("--num_slots=2", "--max_prompt_tokens=64", "--max_new_tokens=8", "--max_images=1", "--max_pixels=4096")
    arguments = (f"--model={large}", "--port=0", *sizes)
    found = said(compilation_folder, QUICK.format(module="serve.__main__"), *arguments, until="programs ready")
    assert found.matching("^starting: importing jax, 0 s$")
    assert found.matching(rf"^loading {large}, \d+ s: \d+ of \d+ tensors")


# ---------------------------------------------------------------- the heartbeat itself


def wait_for(file: io.StringIO, words: str) -> list[str]:
    end = time.monotonic() + 20
    while words not in file.getvalue():
        assert time.monotonic() < end, file.getvalue()
        time.sleep(0.005)
    return file.getvalue().splitlines()


def test_the_innermost_phase_is_told_with_how_far_it_is(quick):
    file = io.StringIO()
    with Heartbeat(file) as heartbeat:
        heartbeat.watch(lambda: "")
        heartbeat.watch(lambda: "3 of 4 programs ready")
        time.sleep(0.1)
        assert file.getvalue() == "", "nothing is under way"
        with heartbeat.during("loading"), heartbeat.during("the teacher") as report:
            wait_for(file, "the teacher, 0 s; 3 of 4 programs ready\n")
            report("7 of 8 tensors")
            wait_for(file, "the teacher, 0 s: 7 of 8 tensors; 3 of 4 programs ready\n")
        with heartbeat.during("the update"):
            heartbeat.detail("2 of 3")
            wait_for(file, "the update, 0 s: 2 of 3;")
    lines = file.getvalue()
    time.sleep(0.1)
    assert file.getvalue() == lines, "it has ended"


def test_nothing_is_said_while_others_speak(monkeypatch):
    monkeypatch.setattr(Heartbeat, "first", 0.2)
    monkeypatch.setattr(Heartbeat, "interval", 0.2)
    file = io.StringIO()
    with Heartbeat(file) as heartbeat, heartbeat.during("a step"):
        for _ in range(60):
            heartbeat.heard()
            time.sleep(0.01)
        assert file.getvalue() == ""
        wait_for(file, "a step")


def test_it_costs_nothing():
    with Heartbeat(io.StringIO()) as heartbeat, heartbeat.during("a step"):
        assert heartbeat._thread is not None and heartbeat._thread.ident is not None
        clock = time.pthread_getcpuclockid(heartbeat._thread.ident)
        time.sleep(1)
        assert time.clock_gettime(clock) < 0.05 and heartbeat._thread.daemon


def test_a_terminal_and_nowhere_get_nothing(quick):
    leader, follower = os.openpty()
    with os.fdopen(leader, "rb", 0), os.fdopen(follower, "w") as terminal:
        for file in (terminal, None):
            with Heartbeat(file) as heartbeat, heartbeat.during("loading"):
                assert heartbeat._thread is None


def test_a_closed_pipe_ends_it_in_silence(quick):
    reading, writing = os.pipe()
    os.close(reading)
    with Heartbeat(os.fdopen(writing, "w")) as heartbeat, heartbeat.during("loading"):
        assert heartbeat._thread is not None
        heartbeat._thread.join(10)
        assert not heartbeat._thread.is_alive()


def test_a_compiler_says_how_far_it_is():
    begun, go_on = threading.Event(), threading.Event()

    def slow():
        begun.set()
        assert go_on.wait(60)
        return jax.jit(lambda x: x).lower(1.0)

    compiler = Compiler(num_threads=1)
    assert compiler.standing() == ""
    program = compiler.program("gradient", slow)
    compiler.program("update", lambda: jax.jit(lambda x: x + 1).lower(1.0))
    assert begun.wait(60) and compiler.standing() == "0 of 2 programs ready, compiling gradient (0 s)"
    go_on.set()
    program(1.0)
    end = time.monotonic() + 20
    while compiler.standing():
        assert time.monotonic() < end
    compiler.close()
