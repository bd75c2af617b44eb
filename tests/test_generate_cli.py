"""`python -m zppo_jax.generate` with the shipped student: its output, its refusals, and stopping."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from tests import runs
from zppo_jax import compilation
from zppo_jax.generate import __main__ as command_line
from zppo_jax.generate import model, sampling

STUDENT = runs.ROOT / "zppo_jax" / "assets" / "tiny" / "student"
QUESTION = r"Add the digits. Answer in \boxed{}."


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("images") / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)).save(path)
    return path


def answered(capsys: Any, *arguments: object) -> str:
    command_line.main(["generate", f"--model={STUDENT}", *map(str, arguments)])
    return capsys.readouterr().out


def responses(capsys: Any, *arguments: object) -> list[dict[str, Any]]:
    lines = answered(capsys, "--json", "--max_new_tokens=16", *arguments).splitlines()
    return sorted((json.loads(line) for line in lines), key=lambda response: response["index"])


def refused(capsys: Any, *arguments: object) -> str:
    with pytest.raises(SystemExit) as caught:
        command_line.main(["generate", *map(str, arguments)])
    out, err = capsys.readouterr()
    *beats, line = err.splitlines()  # a busy machine takes long enough for a heartbeat
    assert all(beat.startswith(("starting: ", "loading ", "sampling, ")) for beat in beats), err
    assert caught.value.code == 2 and out == "" and line.startswith("zppo_jax: "), err
    return line


def test_responses_are_printed_with_reason_and_log_probability(capsys, picture):
    out = answered(capsys, f"--prompt={QUESTION}", f"--image={picture}", "--num_samples=3", "--max_new_tokens=16")
    heads = [line for line in out.splitlines() if line.startswith("--- response")]
    assert len(heads) == 3 and all("log-probability -" in head and "token" in head for head in heads)
    assert out.count("<think>\n") == 3 and all(f"response {number} of 3" in out for number in (1, 2, 3))


def test_json_repeats_with_the_seed_and_not_with_another(capsys, picture):
    ask = (f"--prompt={QUESTION}", f"--image={picture}", "--num_samples=3")
    first, again, other = (responses(capsys, *ask, f"--seed={seed}") for seed in (1, 1, 2))
    assert [one["token_ids"] for one in first] == [one["token_ids"] for one in again]
    assert [one["token_ids"] for one in first] != [one["token_ids"] for one in other]
    for number, one in enumerate(first):
        assert one["index"] == number and one["num_tokens"] == len(one["token_ids"]) == len(one["logprobs"])
        assert one["finish_reason"] in ("stop", "length")
        assert one["logprob"] == pytest.approx(sum(one["logprobs"])) and one["logprob"] < 0


def test_greedy_stops_and_system_text(capsys, picture):
    ask = (f"--prompt={QUESTION}", f"--image={picture}", f"--image={picture}", "--temperature=0", "--num_samples=3")
    whole, *others = responses(capsys, *ask, "--noenable_thinking", "--system=Be brief.")
    assert [one["text"] for one in others] == [whole["text"]] * 2
    cut = whole["text"][1:3]
    stopped, *_ = responses(capsys, *ask, "--noenable_thinking", "--system=Be brief.", f"--stop={cut}", "--stop=unsaid")
    assert len(whole["text"]) > 3 and stopped["text"] == whole["text"][: whole["text"].index(cut)]
    assert stopped["finish_reason"] == "stop"
    # Only one token is left in the nucleus, so the draw is the likeliest.
    narrow, *_ = responses(
        capsys, *ask[:3], "--num_samples=3", "--noenable_thinking", "--system=Be brief.", "--top_k=1"
    )
    assert narrow["text"] == whole["text"]


@pytest.mark.parametrize("form", ["--json", "--nojson"])
def test_a_model_that_computes_no_numbers_is_an_error(capsys, monkeypatch, form):
    """The weights are damaged after they were read: other tests check for NaN in files."""
    load = model.load

    def spoilt(*arguments: Any) -> model.Loaded:
        loaded = load(*arguments)
        return dataclasses.replace(loaded, params=jax.tree.map(lambda weight: weight * jax.numpy.nan, loaded.params))

    monkeypatch.setattr(model, "load", spoilt)
    with pytest.raises(SystemExit) as caught:
        command_line.main(["generate", f"--model={STUDENT}", f"--prompt={QUESTION}", "--num_samples=1", form])
    out, err = capsys.readouterr()
    assert caught.value.code == 1 and out == ""
    assert err.splitlines()[-1].startswith("zppo_jax: the log-probability of token 1 is nan")


def test_progress_counts_responses_tokens_and_slots():
    loaded, lines = model.load(str(STUDENT)), []
    features = loaded.processor.features(QUESTION, [])
    asked = sampling.GenerateRequest(features, 7, sampling.Sampling(), 0, 16, (), num_slots=3)
    with compilation.compiler() as compiler:
        found = list(sampling.responses(loaded, asked, compiler, lines.append, print))
    assert sorted(response.index for response in found) == list(range(7))
    tokens = sum(len(response.token_ids) for response in found)
    assert lines[0].startswith("rollouts 0/7  0 tokens")
    longest = max(len(response.token_ids) for response in found)
    cut = 100 * sum(response.finish_reason == "length" for response in found) / 7
    assert lines[-1].startswith(f"rollouts 7/7  {tokens} tokens, ")
    assert lines[-1].endswith(f" % used  {cut:.0f} % truncated  longest {longest}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--model is missing, as in `python"),
        (("--model=x",), "--prompt is missing, as in `python"),
        (("--model=x/y/z", "--prompt=a"), "--model=x/y/z does not load (there is no directory"),
        ((f"--model={STUDENT}", "--prompt=a", "--image=no.png"), "--image=no.png: there is no such file"),
        ((f"--model={STUDENT}", "--prompt=a", f"--image={__file__}"), "not an image"),
        (("--model=x", "--prompt=a", "--top_p=2"), "top_p=2.0: need"),
        (("--model=x", "--prompt=a", "--num_samples=0"), "num_samples"),
        (("--model=x", "--prompt=a", "--dtype=int8"), "float32|bfloat16"),
        (("--model=x", "--prompt=a", "--stop="), "--stop= is empty"),
        (("--model=x", "--prompt=a", "--cache_gigabytes=-1"), "cache_gigabytes"),
        (
            (f"--model={STUDENT}", "--prompt=a", "--mesh_tensor=3"),
            "--mesh_data, --mesh_fsdp, --mesh_tensor: mesh data=-1 x fsdp=1 x tensor=3 does not use 1 devices exactly",
        ),
        (
            (f"--model={STUDENT}", "--prompt=a", "--cache_gigabytes=1e-6"),
            "--cache_gigabytes = 1e-06: a rollout of 64 + 512 tokens keeps 0.000",
        ),
        (("--model=x", "--prompt=a", "--promt=b"), "--help` lists them"),
        (("--model=x", "b"), "'b' is not a flag"),
    ],
)
def test_every_mistake_is_one_line(capsys, arguments, words):
    assert words in refused(capsys, *arguments)


def test_help_names_every_flag(capsys):
    command_line.main(["generate", "--help"])
    text = capsys.readouterr().out
    missing = [name for name in command_line._FLAGS if f"--{name}" not in text and f"--[no]{name}" not in text]
    assert missing in ([], ["help"]) or not set(missing) - {"help", "helpfull", "helpshort", "helpxml", "?"}


def test_ctrl_c_stops_within_a_chunk(picture):
    """Very many responses; the signal comes after the first one has been printed."""
    command = [sys.executable, "-m", "zppo_jax.generate", f"--model={STUDENT}", f"--prompt={QUESTION}"]
    process = subprocess.Popen(
        [*command, f"--image={picture}", "--num_samples=1000000", "--num_slots=3", "--max_new_tokens=16"],
        cwd=runs.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline().startswith("--- response")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped" in err and "Traceback" not in err
