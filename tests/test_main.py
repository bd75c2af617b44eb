"""The command line reports every mistake in one line, before jax is imported."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs import tiny
from zppo_jax import command, main
from zppo_jax.config import from_config_dict, keys
from zppo_jax.errors import ConfigError

ROOT = Path(__file__).parent.parent
TINY = "--config=configs/tiny.py"


def run(*arguments: str, script: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the real command in the root of the repository, or a script that ends with it."""
    command = ["-m", "zppo_jax.main"] if script is None else ["-c", script]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )


# Replaces the training loop: prints its arguments.
FAKE_TRAIN = """
import sys, types
from absl import app
import zppo_jax
train = types.ModuleType("zppo_jax.train")
def run(config, workdir, heartbeat):
    assert "jax" not in sys.modules
    {body}
train.run = run
zppo_jax.train = sys.modules["zppo_jax.train"] = train
from zppo_jax import main
main.main()
"""


@pytest.fixture(scope="module")
def argv() -> list[str]:
    return ["main", f"--config={ROOT / 'configs' / 'tiny.py'}", "--workdir=unused"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.rollout.group_sise=4"], ["rollout.group_sise", "'4'", "did you mean rollout.group_size?"]),
        (["--config.rollout.group_size=abc"], ["rollout.group_size = 'abc'", "an integer"]),
        (["--config.rollout.group_size=4.5"], ["rollout.group_size = '4.5'", "an integer"]),
        (["--config.optimizer.learning_rate=fast"], ["optimizer.learning_rate = 'fast'", "a number"]),
        (["--config.prompt.enable_thinking=maybe"], ["prompt.enable_thinking = 'maybe'", "True or False"]),
        (["--config.prompt.buckets=48,x"], ["prompt.buckets = '48,x'", "integers"]),
        (["--config.rollout.group_size"], ["rollout.group_size has no value", "an integer"]),
        (["--config.rollout=3"], ["rollout is a section", "rollout.group_size"]),
        (["--noconfig.rollout.group_size"], ["rollout.group_size = 'false'", "an integer"]),
        (["--wrokdir=x"], ["wrokdir", "Did you mean: workdir"]),
        (["stray"], ["'stray' is not a flag"]),
    ],
)
def test_mistakes_are_one_line(argv, arguments, words, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv + arguments)
    with pytest.raises(ConfigError) as caught:
        main.parse(argv + arguments)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_a_missing_file_names_the_ones_there_are():
    with pytest.raises(ConfigError, match=r"no file 'configs/tniy.py'; try .*configs/tiny.py"):
        main.parse(["main", "--config=configs/tniy.py", "--workdir=x"])


@pytest.mark.parametrize("text", ["def get_config(:", "import nothing_of_this_name", "x = 1"])
def test_a_broken_file_is_one_line(tmp_path, text):
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"broken.py: the file does not load, \w+Error") as caught:
        command.load_config(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arguments", [[], ["--workdir=x"], ["--config", "--workdir=x"]])
def test_no_configuration_is_asked_for(arguments):
    with pytest.raises(ConfigError, match=r"--config is missing|no file"):
        main.parse(["main", *arguments])


def test_overrides_are_read_in_every_way_that_absl_reads_them():
    argv = [
        "--config.a.b=1",
        "-config.c",
        "2",
        "--config.d",
        "--noconfig.e",
        "--config=x",
        "--config.f=",
        "--",
        "--config.g=1",
    ]
    assert list(main.overrides.overrides(argv)) == [("a.b", "1"), ("c", "2"), ("d", None), ("e", "false"), ("f", "")]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config.optimizer.freeze=vision/**"], ("vision/**",)),
        (["--config.optimizer.freeze=vision/**,text/embed"], ("vision/**", "text/embed")),
        (["--config.optimizer.freeze", "vision/**, text/embed"], ("vision/**", "text/embed")),
        (["--config.optimizer.freeze=vision/**", "--config.optimizer.freeze=text/embed"], ("vision/**", "text/embed")),
        (["--config.optimizer.freeze="], ()),
    ],
)
def test_texts_are_given_with_commas(arguments, expected):
    script = FAKE_TRAIN.format(body="print(config.optimizer.freeze)")
    result = run(TINY, *arguments, "--workdir=x", script=script)
    assert result.stdout == f"{expected}\n", result.stderr


def test_unknown_key_is_answered_at_once_by_the_real_command():
    start = time.monotonic()
    result = run(TINY, "--config.foo=1")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.splitlines() == [
        "zppo_jax: foo = '1': there is no such key; `python -m zppo_jax.main --help` lists all keys"
    ]
    assert time.monotonic() - start < 10  # 0.3 s if nothing else runs


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([TINY], ["--workdir is missing"]),
        ([TINY + ":gpro", "--workdir=x"], ["method = 'gpro'", "grpo", "zppo"]),
        ([TINY, "--config.update.num_minibatches=64", "--workdir=x"], ["update.num_minibatches = 64"]),
    ],
)
def test_the_real_command_refuses_in_one_line(arguments, words):
    result = run(*arguments)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert all(word in result.stderr for word in words), result.stderr
    assert not (ROOT / "x").exists()


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def test_every_key_can_be_set_from_the_command_line():
    tree = tiny.get_config()
    changes = {"rollout.group_size": 4, "prompt.buckets": (64, 256, 512), "update.num_minibatches": 2, "seed": 7}
    changes |= {"optimizer.freeze": ("vision/**", "text/embed"), "mesh.fsdp": 1, "model.remat": "group"}
    changes |= {
        "update.row_tokens": 1024,
        "warmstart.rebuild": True,
        "prompt.enable_thinking": False,
        "optimizer.learning_rate": 1e-5,
    }
    tree.update_from_flattened_dict(changes)
    flat = {key.name: main._value_at(tree, key) for key in keys()}
    arguments = [f"--config.{name}={_text(value)}" for name, value in flat.items()]
    script = FAKE_TRAIN.format(body="print(config); print(workdir)")
    result = run(TINY, *arguments, "--workdir=runs/here", script=script)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [str(from_config_dict(tree)), "runs/here"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("raise zppo_jax.errors.ConfigError('seed changed')", 2, "seed changed"),
        ("raise main.RunError('host 1 did not come')", 1, "host 1 did not come"),
        ("raise OSError(28, 'No space left on device', 'runs/x/metrics.jsonl')", 1, "runs/x/metrics.jsonl: No space"),
        ("raise KeyboardInterrupt", 130, "the same command continues"),
    ],
)
def test_what_the_loop_refuses_is_one_line_too(body, status, words):
    result = run(TINY, "--workdir=x", script=FAKE_TRAIN.format(body=body))
    assert result.returncode == status and len(result.stderr.splitlines()) == 1 and words in result.stderr


def test_a_configuration_finds_its_neighbours_from_any_folder(tmp_path):
    folder = tmp_path / "elsewhere" / "configs"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "common.py").write_text("def get_config():\n    raise ValueError('this is the neighbour')")
    (folder / "mine.py").write_text("from configs.common import get_config")
    result = run(f"--config={folder / 'mine.py'}", "--workdir=x")
    assert result.returncode == 2 and "this is the neighbour" in result.stderr


def test_a_fault_of_the_program_keeps_its_traceback():
    result = run(TINY, "--workdir=x", script=FAKE_TRAIN.format(body="raise ValueError('a bug')"))
    assert result.returncode == 1 and "Traceback" in result.stderr and "a bug" in result.stderr


def test_help_teaches():
    text = main.help_text(str(ROOT / "configs" / "tiny.py"))
    assert "configs/tiny.py --workdir=runs/tiny" in text and "rollout.group_size = 8" in text
    assert all(key.name in text and key.setting.doc in text for key in keys())
    assert all(method in text for method in ("grpo_replay_bcq", "grpo_replay_ncq", "zppo"))
    assert max(map(len, main.help_text().splitlines())) < 160
