"""`python -m zppo_jax.serve`: every mistake is one line, as early as it can be found."""

from __future__ import annotations

import socket
from typing import Any

import pytest

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
        (("--model=x", "y"), "'y' is not a flag"),
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
