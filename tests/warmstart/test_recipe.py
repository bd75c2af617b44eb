"""The fingerprint ties the shipped weights to the source that made them."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

from tests import runs
from zppo_jax.models import qwen3_5
from zppo_jax.processor import Processor
from zppo_jax.warmstart import SHIPPED, examples, recipe, tiny
from zppo_jax.warmstart.build import read_stamp

RECIPE = recipe.Recipe()


@pytest.fixture(scope="module")
def fingerprint() -> str:
    return recipe.fingerprint()


def test_the_shipped_weights_belong_to_this_source(fingerprint):
    for name in ("student", "teacher"):
        assert read_stamp(SHIPPED / name) == {"fingerprint": fingerprint}, (
            f"the shipped {name} was made by another recipe: run `python -m zppo_jax.warmstart`"
        )


def test_the_shipped_weights_are_small_and_load():
    for name in ("student", "teacher"):
        processor = Processor.from_directory(SHIPPED / name)
        assert processor.tokenizer.to_str() == tiny.processor().tokenizer.to_str()
        assert qwen3_5.load(SHIPPED / name).config == tiny.config(processor)
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) < 8e6


def test_the_fingerprint_is_the_same_in_every_process(fingerprint):
    script = "from zppo_jax.warmstart import recipe; print(recipe.fingerprint())"
    environment = os.environ | {"PYTHONPATH": str(runs.ROOT), "PYTHONHASHSEED": "12345"}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == fingerprint, result.stderr


@pytest.mark.parametrize(
    "changed",
    [
        dataclasses.replace(RECIPE, mixture=dataclasses.replace(RECIPE.mixture, teacher_error=0.2)),
        dataclasses.replace(RECIPE, student=dataclasses.replace(RECIPE.student, num_steps=1)),
        dataclasses.replace(RECIPE, teacher=dataclasses.replace(RECIPE.teacher, learning_rate=1e-4)),
        dataclasses.replace(RECIPE, student=dataclasses.replace(RECIPE.student, seed=99)),
    ],
)
def test_another_recipe_is_another_fingerprint(fingerprint, changed):
    assert recipe.fingerprint(changed) != fingerprint


def test_another_tokenizer_is_another_fingerprint(fingerprint, monkeypatch):
    other = tiny.build_tokenizer(tiny._GRID_TEXTS * 4, 339, tiny._WHOLE_WORDS)
    monkeypatch.setattr(tiny, "tokenizer", lambda: other)
    assert recipe.fingerprint() != fingerprint


def test_another_architecture_is_another_fingerprint(fingerprint, monkeypatch):
    config = tiny.config

    def wider(processor):
        made = config(processor)
        return dataclasses.replace(made, text=dataclasses.replace(made.text, intermediate_size=176))

    monkeypatch.setattr(tiny, "config", wider)
    assert recipe.fingerprint() != fingerprint


def test_other_examples_are_another_fingerprint(fingerprint, monkeypatch):
    """The code that draws them is a part of the recipe, whether it changes the words or the pixels."""
    plain = examples.plain

    def louder(rng, *arguments):
        example = plain(rng, *arguments)
        return dataclasses.replace(example, image=np.maximum(example.image, 1))

    monkeypatch.setattr(examples, "plain", louder)
    assert recipe.fingerprint() != fingerprint


def test_batches_are_a_function_of_the_seed():
    processor = tiny.processor()
    config = tiny.config(processor)
    stage = dataclasses.replace(RECIPE.student, plain=2, bcq=1, ncq=1)

    def first(seed: int):
        stream = recipe.batches(dataclasses.replace(stage, seed=seed), RECIPE.mixture, config, processor, False)
        next(stream)
        return next(stream)

    one, same, other = first(1), first(1), first(2)
    # Whole chunks of 16 for the longest prompt of the bucket, and a response.
    assert [batch["tokens_BT"].shape[1] for batch in one] == [48, 80, 208]
    assert all(np.array_equal(a[key], b[key]) for a, b in zip(one, same, strict=True) for key in a)
    assert any(not np.array_equal(a["target_BT"], b["target_BT"]) for a, b in zip(one, other, strict=True))
