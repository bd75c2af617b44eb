"""`python -m zppo_jax.serve`: the real process, and every mistake in one line."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from typing import Any

import pytest

from tests import runs
from tests.serve.conftest import STUDENT
from zppo_jax.serve import __main__ as command_line


def refused(capsys: Any, *arguments: object) -> str:
    with pytest.raises(SystemExit) as caught:
        command_line.main(["serve", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and out == "" and err.startswith("zppo_jax: ") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--model is missing, as in `python"),
        (("--model=x", "--port=70000"), "port"),
        (("--model=x", "--api_key="), "--api_key= is empty"),
        (("--model=x", "--num_slots=0"), "num_slots"),
        (("--model=x", "y"), "'y' is no flag"),
        (("--model=x", "--prot=1"), "--help` lists them"),
    ],
)
def test_every_mistake_is_one_line(capsys, arguments, words):
    assert words in refused(capsys, *arguments)


def test_what_cannot_be_had_is_told_before_anything_is_loaded(capsys):
    pytest.importorskip("uvicorn")
    assert "does not load (there is no directory" in refused(capsys, "--model=x/y/z", "--port=0")
    assert "--max_queue=3 is below --num_slots=16" in refused(capsys, "--model=x", "--port=0", "--max_queue=3")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "in use; choose another, or --port=0" in refused(capsys, "--model=x", f"--port={port}")
    assert "--host=no.such.host.invalid" in refused(capsys, "--model=x", "--host=no.such.host.invalid")


def test_help_names_every_flag(capsys):
    command_line.main(["serve", "--help"])
    text = capsys.readouterr().out
    missing = {name for name in command_line._FLAGS if f"--{name}" not in text and f"--[no]{name}" not in text}
    assert missing <= {"help", "helpfull", "helpshort", "helpxml", "?"}


def test_the_process_serves_until_ctrl_c(live, compilation_folder):
    """With the sizes of the other tests' server, so that nothing is compiled again."""
    del live
    sizes = ("--num_slots=4", "--max_prompt_tokens=128", "--max_new_tokens=64", "--max_images=2", "--max_queue=9")
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(compilation_folder),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "zppo_jax.serve", f"--model={STUDENT}", "--port=0", *sizes],
        cwd=runs.ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    address = next(found[1] for line in process.stdout if (found := re.search(r"serving student on (\S+)/v1", line)))
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(f"{address}/v1/models", timeout=20) as response:
        assert json.load(response)["data"][0]["id"] == "student"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0 and err == "", err
