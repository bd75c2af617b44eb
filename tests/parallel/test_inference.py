"""`python -m zppo_jax.generate` and `serve` on eight fake devices give the same answers as on one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import runs
from tests.serve.conftest import QUESTION, STUDENT, data_uri
from zppo_jax.generate import __main__ as command_line
from zppo_jax.generate import model
from zppo_jax.rollout import memory

GENERATE = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
from zppo_jax.generate import __main__ as command_line, model
load = model.load
def printing(*arguments):
    loaded = load(*arguments)
    embedding = loaded.params["text"]["embed"]
    print("a device holds", embedding.addressable_data(0).size / embedding.size, file=sys.stderr)
    return loaded
model.load = printing
for arguments in json.loads(sys.argv[1]):
    command_line.main(["generate", *arguments])
"""
"""Commands one after the other in a process with eight devices, which prints how the parameters are divided."""

SERVE = """
from zppo_jax.serve import __main__ as command_line, start
class Printing(start.Session):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        mask_BS = self._slots.mask_BS
        print("a device holds", mask_BS.addressable_data(0).size / mask_BS.size, flush=True)
start.Session = Printing
command_line.main()
"""
"""The server, which prints how the slots of its sessions are divided: programs would silently move them from one device
to the mesh, if they fitted there."""


@pytest.fixture(scope="module")
def image_HWC() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def asked(tmp_path_factory, image_HWC) -> list[str]:
    path = tmp_path_factory.mktemp("images") / "a.png"
    Image.fromarray(image_HWC).save(path)
    return [
        *(f"--model={STUDENT}", f"--prompt={QUESTION}", f"--image={path}", "--num_samples=8"),
        *("--max_new_tokens=16", "--dtype=float32", "--json"),
    ]


@pytest.fixture(scope="module")
def greedy_on_one(asked) -> list[dict[str, Any]]:
    return on_one([*asked, "--temperature=0"])


def on_one(arguments: list[str]) -> list[dict[str, Any]]:
    """The responses of the command on this process's one device."""
    out = Path(arguments[2].removeprefix("--image=")).with_suffix(".jsonl")
    with out.open("w") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", file)
        command_line.main(["generate", *arguments])
    return responses(out.read_text())


def responses(out: str) -> list[dict[str, Any]]:
    """The responses by run and number, whatever the order in which they finished."""
    lines = [json.loads(line) for line in out.splitlines()]
    return [
        one for run in range(0, len(lines), 8) for one in sorted(lines[run : run + 8], key=lambda one: one["index"])
    ]


def room_for_one() -> float:
    """The GB with which a device holds its half of one slot, but not of two."""
    config = model.load(str(STUDENT)).config
    return 0.75e-9 * memory.device_bytes(config, 1, 64 + 16, ("float32", "float32"))


def test_generate_says_the_same_on_a_mesh(asked, greedy_on_one):
    """Sampled and greedy, in half as many slots as on one device: slots are used again."""
    ways = [[*asked, way, f"--cache_gigabytes={room_for_one()}"] for way in ("--seed=3", "--temperature=0")]
    process = runs.command([json.dumps(ways)], GENERATE)
    assert process.returncode == 0, process.stderr[-3000:]
    found = responses(process.stdout)
    expected = [*on_one([*asked, "--seed=3"]), *greedy_on_one]
    assert [one["token_ids"] for one in found] == [one["token_ids"] for one in expected]
    assert len({str(one["token_ids"]) for one in expected}) > 4
    for one, other in zip(found, expected, strict=True):
        assert one["logprobs"] == pytest.approx(other["logprobs"], abs=1e-4)
    assert process.stderr.count("mesh data 4 x fsdp 1 x tensor 2\n") == 2 and "replicated" not in process.stderr
    assert process.stderr.count("a device holds 0.5\n") == 2
    assert process.stderr.count("4 slots instead of 8: no more fit in") == 2


def test_serve_answers_on_a_mesh(greedy_on_one, image_HWC):
    pytest.importorskip("uvicorn")
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
    sizes = ("--num_slots=6", "--max_prompt_tokens=64", "--max_new_tokens=16", "--max_images=1", "--max_pixels=4096")
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, f"--model={STUDENT}", "--port=0", "--dtype=float32", *sizes],
        cwd=runs.ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        address, said = until_it_serves(process)
        assert "mesh data 4 x fsdp 1 x tensor 2\n" in said
        answer = post(f"{address}/v1/chat/completions", image_HWC)
        texts = [f"<think>\n{choice['message']['content']}" for choice in answer["choices"]]
        assert texts == [greedy_on_one[0]["text"]] * 9
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=20)
        assert process.returncode == 0 and err == "", err
        assert "a device holds 0.25\n" in rest, "the session of the engine's thread"
    finally:
        process.kill()


def until_it_serves(process: Any) -> tuple[str, str]:
    """The address, and the lines before it."""
    said = ""
    for line in process.stdout:
        if found := re.search(r"serving student on (\S+)/v1", line):
            return found[1], said
        said += line
    raise AssertionError(process.stderr.read()[-3000:])


def post(url: str, image_HWC: np.ndarray) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": data_uri(image_HWC)}}, {"type": "text", "text": QUESTION}]
    body = {"messages": [{"role": "user", "content": parts}], "temperature": 0, "n": 9}
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=60) as answer:
        return json.load(answer)
