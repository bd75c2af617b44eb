"""Held-out accuracy: its arithmetic, its names in metrics.jsonl, its way through a checkpoint."""

from __future__ import annotations

import json
import math
from typing import cast

import numpy as np
import pytest

from tests import runs
from zppo_jax.actor import Actor
from zppo_jax.data.pipeline import Item
from zppo_jax.evaluate import Evaluation, evaluate
from zppo_jax.evaluate.heldout import accuracy
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.requests import Draw
from zppo_jax.types import Features, Group, Prompt, Question, Rollout


def test_standard_error_is_that_of_a_proportion():
    mean, error = accuracy([True, False, False, False])
    assert mean == 0.25 and error == pytest.approx(math.sqrt(0.25 * 0.75 / 4))
    assert accuracy([True] * 9) == (1.0, 0.0)
    # As the spread of many such means.
    rng = np.random.default_rng(0)
    means = rng.binomial(256, 0.3, 20_000) / 256
    assert accuracy([True] * 77 + [False] * 179)[1] == pytest.approx(means.std(), rel=0.02)


class Answers:
    """An actor that is right where it is told to be, and remembers how it was asked."""

    def __init__(self, right: set[str]) -> None:
        self.right = right

    def answer(self, params, items, num_samples, sampling: Sampling, draw: Draw) -> list[Group]:
        assert num_samples == 1 and params == {} and draw == Draw(seed=0, step=3, purpose="evaluate")
        self.sampling = sampling
        none = np.zeros(0, np.int32)
        return [
            Group(
                item.prompt,
                item.features,
                (Rollout(none, none, "stop", "", item.prompt.question.id in self.right, None, ""),),
            )
            for item in items
        ]


def item(name: str, level: str) -> Item:
    question = Question(name, "?", (), "1", "math", level)
    return Item(Prompt(f"held-out/{name}", "plain", question, "?"), cast(Features, None))


def test_levels_are_sorted_and_add_up_to_all():
    items = [item("a", "y"), item("b", "x"), item("c", "y"), item("d", "y")]
    answers = Answers({"b", "d"})
    result = evaluate(cast(Actor, answers), {}, items, Sampling(0.5, top_k=3), seed=0, step=3)
    assert answers.sampling == Sampling(0.5, top_k=3)
    assert result.overall[0] == 0.5 and list(result.levels) == ["x", "y"]
    assert result.levels["x"] == (1.0, 0.0) and result.levels["y"][0] == pytest.approx(1 / 3)
    assert list(result.table()) == ["x", "y", "all"]
    assert result.metrics() == {
        "eval/accuracy": 0.5,
        "eval/standard_error": 0.25,
        "eval/accuracy/x": 1.0,
        "eval/accuracy/y": pytest.approx(1 / 3),
    }


def test_json_gives_the_same_back_to_the_bit():
    before = Evaluation((1 / 3, 0.1 + 0.2), {"taught/read": (2 / 7, 1e-17), "hidden/dax": (0.0, 0.0)})
    assert Evaluation.from_json(json.loads(json.dumps(before.to_json()))) == before
    assert list(Evaluation.from_json(before.to_json()).table()) == list(before.table())


def test_the_rows_of_a_run_hold_what_its_checkpoint_holds(straight):
    """A run that continues prints the table of the run that began."""
    rows = runs.metrics(straight)
    host = json.loads((straight / "checkpoints" / "6" / "host" / "metadata").read_text())
    for name, row in (("first", rows[0]), ("last", rows[-1])):
        metrics = Evaluation.from_json(host[name]).metrics()
        assert {key: row[key] for key in metrics} == metrics
        error = accuracy([True] * round(8 * row["eval/accuracy"]) + [False] * round(8 - 8 * row["eval/accuracy"]))[1]
        assert row["eval/standard_error"] == pytest.approx(error)
