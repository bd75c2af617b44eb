"""`bash benchmarks/gpu.sh` at small sizes on a CPU: nothing of it runs for the first time on a GPU."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from typing import Any

import pytest

from benchmarks import models, update_cases
from benchmarks.on_gpu import decode, measuring, part, products, questions, run, table, update
from tests import runs
from zppo_jax.models.qwen3_5 import sizes

SHELL = runs.ROOT / "benchmarks" / "gpu.sh"
PARTS = {name: int(seconds) for seconds, name in re.findall(r"^(\d+) +(\w+)$", SHELL.read_text(), re.M)}

EXPECTED: dict[str, tuple[str, ...]] = {
    "peaks": ("gb_per_second", "tflops"),
    "decode": ("decode_tokens_per_second", "bandwidth_share", "copy_gb_per_second"),
    "update": ("row_tokens", "update_seconds", "utilisation", "compiled_gib"),
    "attention": ("milliseconds",),
    "logprobs": ("value", "gradients"),
    "products": ("bfloat16", "dequantised", "float8"),
}
"""What the lines of a part hold, of a part that runs in this process."""


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_the_parts_are_scripts_that_end_in_nine_minutes():
    assert subprocess.run(["bash", "-n", SHELL]).returncode == 0
    assert PARTS.keys() == {*EXPECTED, "run"} and sum(PARTS.values()) < 9 * 60
    most = float(run.options_of([])[0].seconds)
    assert most < PARTS["run"], "it ends its run itself, to say what that did until then"


@pytest.mark.parametrize("name", EXPECTED)
def test_a_part_runs_on_a_cpu(name, capsys):
    importlib.import_module(f"benchmarks.on_gpu.{name}").main(["--small"])
    found = lines(capsys.readouterr().out)
    assert all(line["small"] and line["device"] == "cpu" for line in found)
    held = {value for line in found for value in line}
    assert held.issuperset(EXPECTED[name]) and not any("why" in line for line in found), found
    assert len(table.table(found)) > 2


@pytest.mark.parametrize("script", [decode, run])
def test_without_a_gpu_nothing_is_measured(script, capfd):
    script.main([])
    (line,) = lines(capfd.readouterr().out)
    assert line == {"device": "cpu", "measured": False, "why": "there is no GPU here"}


def test_the_command_goes_on_after_a_part_and_ends_with_a_table(tmp_path):
    out = tmp_path / "out.jsonl"
    done = subprocess.run(
        ["bash", SHELL, "--small", out, "peaks", "products"], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    found = lines(out.read_text())
    assert [line["case"] for line in found] == ["copy", "product", "peaks", "fp8-product", "products"], done.stderr
    assert "| peaks" in done.stdout and "| copy 1 MiB" in done.stdout


def test_a_part_that_fails_or_takes_too_long_is_a_line():
    failed = part.run(60, "no_such_script", [])
    assert failed["measured"] is False and "No module named" in str(failed["why"])
    late = part.run(0.1, "peaks", ["--small"])
    assert str(late["why"]).startswith("it took longer than 0.1 s")
    (row,) = table.cells(late)
    assert row[:2] == ("peaks", "not measured")


@pytest.mark.slow
def test_two_steps_of_the_real_command(capfd):
    """Rewards of both kinds, so that there are gradients, and prompts with help."""
    run.main(["--small", "--seconds=500"])
    *steps, ended = lines(capfd.readouterr().out)
    assert ended["status"] == 0, ended
    assert [line["step"] for line in steps] == [0, 1, 2]
    assert all(line["update_tokens"] > 0 and line["seconds"]["update"] > 0 for line in steps[1:])
    assert sum(line["bcq_groups"] + line["ncq_groups"] for line in steps[1:]) > 0


def test_a_run_that_fails_says_why(tmp_path):
    words = [sys.executable, "-c", "import sys; print('zppo_jax: no room'); sys.exit(1)"]
    assert run.run(tmp_path, words, 20) == {"status": 1, "measured": False, "why": "zppo_jax: no room"}
    assert run.lines_of(tmp_path) == []


def test_half_of_all_responses_are_right():
    assert [questions.parity("a" * length, None) for length in range(4)] == [True, False, True, False]


def test_bytes_of_a_step_are_weights_states_and_keys():
    parts = decode.step_bytes(models.config("0.8B"), rows=256, context=768)
    assert parts["weights"] == 2 * 752_393_024
    # 18 linear layers of 16 heads with a state of 128 x 128 in float32, read and written.
    assert parts["recurrent states"] == 2 * 4 * 256 * 18 * 16 * 128 * 128
    assert parts["convolution contexts"] == 2 * 2 * 256 * 18 * 3 * 3 * 16 * 128
    # 6 full layers with two heads of 256: 12 KiB for each token so far.
    assert parts["keys and values"] == 256 * 768 * 12 * 1024
    # A separate embedding is not read: of 9B it has 248,320 rows of 4,096.
    assert decode.step_bytes(sizes.get("9B"), 1, 0)["weights"] == pytest.approx(
        2 * (8.953e9 - 248_320 * 4096), rel=1e-3
    )
    assert measuring.copy_bandwidth(2**20) > 0


def test_keys_that_a_token_of_a_row_sees():
    case = update_cases.Case("", "update", "0.8B", "", 1, 1, row_tokens=0, rows=1, prompt=4, rollouts=2, new=3)
    # A trunk of three tokens sees 1 + 2 + 3 keys, each of two branches 4 + 5 + 6.
    assert update.keys_seen(case) == (6 + 2 * 15) / 9
    assert update.num_tokens(case) == 2 * 9
    assert update.case_of(False, 8192, 4).rollouts * 512 + 512 == 8192


def test_kernels_are_those_of_the_27b_model():
    assert products.kernels() == {
        "mlp gate": (5120, 17408),
        "mlp down": (17408, 5120),
        "linear qkv": (5120, 10240),
        "linear out": (6144, 5120),
        "full q and gate": (5120, 12288),
    }
