"""Building the warm start can be interrupted; a configuration finds the models it names, or gets the reason."""

from __future__ import annotations

import contextlib
import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny as tiny_config
from tests import runs
from zppo_jax.config import from_config_dict
from zppo_jax.errors import ConfigError
from zppo_jax.models import qwen3_5
from zppo_jax.processor import Processor
from zppo_jax.warmstart import directories, recipe, supervised, tiny

builder: Any = importlib.import_module("zppo_jax.warmstart.build")  # the package shows a function of that name


@pytest.fixture
def no_parameters(monkeypatch):
    """Parameters that are all zero, at once: drawing them takes seconds and is not what is tested."""
    zeros = lambda config, key: jax.tree.map(lambda x: jnp.zeros(x.shape), qwen3_5.abstract_params(config))  # noqa: E731
    monkeypatch.setattr(qwen3_5, "init_params", zeros)


# ---------------------------------------------------------------- training


def test_a_few_steps_lower_the_loss(start):
    losses = json.loads((start / "losses.json").read_text())
    assert len(losses) == runs.NUM_SUPERVISED_STEPS
    assert losses[0] > 5 and losses[-1] < 0.5 * losses[0] / 2


def test_a_response_is_packed_with_its_stop_token(start):
    processor = Processor.from_directory(start)
    config = tiny.config(processor)
    drawn = recipe.draw(recipe.Recipe().student, recipe.Recipe().mixture, np.random.default_rng(0), False)[0][:3]
    batch = supervised.pack(config, processor, drawn, recipe.BUCKETS[0], recipe.PATCH_SLOTS, recipe.MAX_NEW_TOKENS)
    for m, example in enumerate(drawn):
        ids = batch["target_BT"][m][batch["counted_BT"][m]]
        assert ids[-1] == processor.stop_ids[0]
        assert processor.tokenizer.decode(ids[:-1].tolist(), skip_special_tokens=False) == example.response
        assert processor.tokenizer.token_to_id("</think>") in ids, "the control token, not its letters"


class Training:
    """Replaces the training: records which model was trained from which, and stops at a chosen step."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.steps: list[int] = []
        self.fail_at = fail_at

    def __call__(self, params: Any, config: Any, batches: Any, num_steps: int, *rest: Any) -> Any:
        if len(self.steps) == self.fail_at:
            raise KeyboardInterrupt
        self.steps.append(num_steps)
        return params


def trained(target: Path, monkeypatch, fail_at: int | None = None) -> list[int]:
    """Builds into `target`; returns the number of steps of each training that ended."""
    training = Training(fail_at)
    monkeypatch.setattr(supervised, "train", training)
    with pytest.raises(KeyboardInterrupt) if fail_at is not None else contextlib.nullcontext():
        builder.build(target, message=lambda _: None)
    return training.steps


def test_a_finished_part_is_not_trained_again(tmp_path, monkeypatch, no_parameters):
    whole = trained(tmp_path / "whole", monkeypatch)
    assert len(whole) >= 2
    parts = [step for _ in whole[1:] for step in trained(tmp_path / "parts", monkeypatch, fail_at=1)]
    assert parts == whole[:-1] and builder.read_stamp(tmp_path / "parts" / "teacher") is None
    assert trained(tmp_path / "parts", monkeypatch) == whole[-1:]
    assert trained(tmp_path / "parts", monkeypatch) == []
    for name in ("student", "teacher"):
        assert builder.read_stamp(tmp_path / "parts" / name) == {"fingerprint": recipe.fingerprint()}
        processor = Processor.from_directory(tmp_path / "parts" / name)
        assert qwen3_5.load(tmp_path / "parts" / name).config == tiny.config(processor)


def test_what_goes_wrong_while_drawing_ahead_is_raised():
    """If a thread died silently, the training would wait for ever."""

    def stream():
        yield 1
        yield 2
        raise ValueError("an example does not fit its bucket")

    ahead = builder._ahead(stream())
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(ValueError, match="does not fit"):
        next(ahead)


# ---------------------------------------------------------------- finding


def config(method: str = "zppo", **paths: str):
    tree = tiny_config.get_config(method)
    tree.model.path, tree.teacher.path = paths.get("model", ""), paths.get("teacher", "")
    return from_config_dict(tree)


@pytest.fixture
def shipped(tmp_path, monkeypatch) -> Path:
    """A shipped warm start with valid stamps."""
    for name in ("student", "teacher"):
        (tmp_path / "tiny" / name).mkdir(parents=True)
        (tmp_path / "tiny" / name / builder.STAMP).write_text(json.dumps({"fingerprint": recipe.fingerprint()}))
    monkeypatch.setattr(builder, "SHIPPED", tmp_path / "tiny")
    return tmp_path / "tiny"


def test_an_empty_path_is_the_shipped_one(shipped, tmp_path):
    assert directories(config(), tmp_path) == (shipped / "student", shipped / "teacher")
    assert directories(config(model="a"), tmp_path) == (Path("a"), shipped / "teacher")
    assert directories(config(model="a", teacher="b"), tmp_path) == (Path("a"), Path("b"))


@pytest.mark.parametrize("content", ["{", None])
def test_missing_weights_are_refused_in_one_line(shipped, tmp_path, content):
    stamp = shipped / "teacher" / builder.STAMP
    stamp.unlink() if content is None else stamp.write_text(content)
    with pytest.raises(ConfigError, match=r"the teacher in .* is missing: set --config") as caught:
        directories(config(), tmp_path)
    assert "\n" not in str(caught.value)


def test_weights_of_another_recipe_are_used_and_named(shipped, tmp_path):
    """Another NumPy may draw other examples; that must not prevent a first run."""
    (shipped / "teacher" / builder.STAMP).write_text('{"fingerprint": "of another recipe"}')
    said: list[str] = []
    assert directories(config(), tmp_path, said.append)[1] == shipped / "teacher"
    assert len(said) == 1 and "teacher" in said[0] and "another recipe" in said[0]


def test_what_is_not_needed_is_not_asked_for(shipped, tmp_path):
    """GRPO has no teacher, and with another model the shipped student is not needed."""
    shutil.rmtree(shipped / "teacher")
    assert directories(config("grpo"), tmp_path)[0] == shipped / "student"
    assert directories(config("grpo_replay", model="a"), tmp_path)[0] == Path("a")
    shutil.rmtree(shipped / "student")
    assert directories(config("grpo", model="a"), tmp_path)[0] == Path("a")
    with pytest.raises(ConfigError, match="the student in"):
        directories(config("grpo"), tmp_path)


def test_a_rebuilt_one_lives_in_the_run_directory(tmp_path, monkeypatch, no_parameters):
    monkeypatch.setattr(supervised, "train", Training())
    tree = tiny_config.get_config()
    tree.warmstart.rebuild = True
    found = directories(from_config_dict(tree), tmp_path, message=lambda _: None)
    assert found == (tmp_path / "warmstart" / "student", tmp_path / "warmstart" / "teacher")
    assert all((path / "model.safetensors").is_file() for path in found)
