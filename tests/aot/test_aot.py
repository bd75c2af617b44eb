"""Programs compiled for a slice that is not there: names, sizes, and one real compilation where libtpu is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests import runs
from zppo_jax.aot import __main__ as command
from zppo_jax.aot import programs, report, topologies
from zppo_jax.config import ConfigError

TINY = str(runs.ROOT / "configs" / "tiny.py")


@pytest.mark.parametrize(
    ("name", "libtpu", "devices"),
    [
        ("v5e-16", "v5e:4x4", 16),
        ("v5p-128", "v5p:4x4x4", 64),
        ("v6e-64", "v6e:8x8", 64),
        ("v5p-8", "v5p:2x2x1", 4),
        ("v5p:4x4x8", "v5p:4x4x8", 128),
    ],
)
def test_names_of_slices(name, libtpu, devices):
    found = topologies.parse(name)
    assert (found.name, found.libtpu, found.num_devices) == (name, libtpu, devices)


@pytest.mark.parametrize("name", ["v5e-7", "v5p-9", "h100-8", "v5p", "v5p:axb", ""])
def test_what_is_no_slice_is_refused_with_those_that_are(name):
    with pytest.raises(ConfigError, match=r"is no slice: v5e-1\|4\|8.*v5p-8\|16.*or a grid such as v5p:4x4x4"):
        topologies.parse(name)


def test_flags_are_this_commands_own_and_keys_are_the_trainers(monkeypatch):
    words = ["aot", f"--config={TINY}:grpo", "--topology=v5e-16", "--json", "--programs=gradient,update"]
    monkeypatch.setattr(sys, "argv", [*words, "--config.update.rows_per_microbatch=16"])  # config_flags reads it itself
    config = command.parse(sys.argv)
    assert config.method == "grpo" and config.update.rows_per_microbatch == 16
    assert command._PROGRAMS.value == ["gradient", "update"] and command._JSON.value
    with pytest.raises(ConfigError, match="--topology is missing"):
        command.parse(["aot", f"--config={TINY}"])
    with pytest.raises(ConfigError, match="no_such_key"):
        command.parse([*words, "--config.update.no_such_key=1"])


def test_help_teaches(capsys):
    command.main(["aot", "--help"])
    said = capsys.readouterr().out
    for name in command._FLAGS:
        assert f"--{name}" in said or f"--[no]{name}" in said, name


def test_models_by_directory_and_by_name():
    assert programs.model_config("", "student").text.hidden_size < 512
    assert programs.model_config("Qwen/Qwen3.5-27B-FP8", "teacher") == programs.sizes.get("27B")
    with pytest.raises(ConfigError, match=r"'Owner/Other' is no directory .* and no published size"):
        programs.model_config("Owner/Other", "student")


def test_collectives_are_counted_in_bytes():
    text = """
      %a = f32[4,8]{1,0} all-gather(%x), dimensions={0}
      %b = (bf16[16]{0}, bf16[64]{0}) all-gather-start(%y), dimensions={0}
      %c = f32[] all-reduce(%z), to_apply=%add
      %d = f32[9] add(%all-reduce, %c)
    """
    assert programs.collective_bytes(text) == {"all-gather": 128 + 128, "all-reduce": 4}


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        ("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory. Used 23.90G of 15.75G hbm.", 23.9),
        ("RESOURCE_EXHAUSTED: total memory required (16.17G) exceeds available HBM (15.75G)", 16.17),
        ("INVALID_ARGUMENT: something else", None),
    ],
)
def test_a_refusal_says_how_much_was_needed(message, needed):
    found = programs._bytes_needed(message)
    assert found == (None if needed is None else int(needed * 2**30))


def test_kinds_of_programs():
    names = {
        "zero gradient": "zeros", "gradient": "gradient", "update": "update", "log-probabilities": "logprobs",
        "prefill of 64 tokens": "prefill", "teacher's decode over 24 keys": "teacher decode",
    }  # fmt: skip
    assert {name: report._kind(name) for name in names} == names


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_real_compilation_for_a_slice():
    """The optimiser's step of configs/tiny.py on 16 chips of v5e; standard output holds the object alone."""
    result = subprocess.run(
        [sys.executable, "-m", "zppo_jax.aot", f"--config={TINY}", "--topology=v5e-16", "--programs=update,weights",
         "--json"],
        cwd=runs.ROOT, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert (answer["topology"], answer["devices"]) == ("v5e-16", 16)
    found = {one["program"]: one for one in answer["programs"]}
    assert {"update", "weights", "teacher weights"} <= set(found)
    for one in found.values():
        assert one["fits"] and 0 < one["peak_gib"] < one["limit_gib"] == 15.75 and one["compile_s"] > 0
