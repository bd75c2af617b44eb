"""Held-out accuracy: its arithmetic, its names in metrics.jsonl, its way through a checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import cast

import numpy as np
import pytest

from tests import runs
from zppo_jax.actors.actor import Actor
from zppo_jax.data.pipeline import Item
from zppo_jax.evaluate import Evaluation, Score, evaluate
from zppo_jax.keys import RandomStream
from zppo_jax.rollout.filters import Sampling
from zppo_jax.types import Features, Group, Prompt, Question, Rollout


def test_intervals_are_wilsons():
    """The examples of Newcombe (1998), table I, method 3, and the equation that defines them."""
    assert Score(0, 512).interval(1.0) == (0.0, pytest.approx(1 / 513))
    assert Score(512, 512).interval(1.0) == (pytest.approx(512 / 513), 1.0)
    assert Score(81, 263).interval() == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert Score(0, 20).interval() == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert Score(1, 29).interval() == pytest.approx((0.0061, 0.1718), abs=5e-5)
    for correct, total in ((1, 4), (77, 256), (255, 256)):
        for end in Score(correct, total).interval():
            assert abs(end - correct / total) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / total), rel=1e-6)


def test_intervals_hold_what_they_promise():
    """Of all evaluations of a known accuracy about 95 % contain it; of one of 0.995 the usual ones hold it in 63 %."""
    for accuracy in (0.01, 0.3, 0.5, 0.995):
        chances = [math.comb(200, k) * accuracy**k * (1 - accuracy) ** (200 - k) for k in range(201)]
        within = [low <= accuracy <= high for low, high in (Score(k, 200).interval() for k in range(201))]
        assert 0.92 < sum(chance for chance, holds in zip(chances, within, strict=True) if holds) < 0.99, accuracy


def test_standard_error_is_that_of_a_proportion_and_never_nothing():
    for correct in (77, 128, 200):
        share = correct / 256
        assert Score(correct, 256).standard_error == pytest.approx(math.sqrt(share * (1 - share) / 256), rel=0.003)
    assert Score(0, 512).standard_error == pytest.approx(0.5 / 513) == Score(512, 512).standard_error


class Answers:
    """An actor that is right where it is told to be, and remembers how it was asked."""

    def __init__(self, right: set[str]) -> None:
        self.right = right

    def answer(self, params, items, num_samples, sampling: Sampling, draw: RandomStream) -> list[Group]:
        assert num_samples == 1 and params == {} and draw == RandomStream(seed=0, step=3, purpose="evaluate")
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
    assert result.overall == (2, 4) and list(result.levels) == ["x", "y"]
    assert result.levels == {"x": (1, 1), "y": (1, 3)}
    assert list(result.table()) == ["x", "y", "all"]
    assert result.table()["x"] == (1.0, pytest.approx(0.2065, abs=5e-5), 1.0), "one right answer proves little"
    assert result.metrics() == {
        "eval/accuracy": 0.5,
        "eval/standard_error": pytest.approx(math.sqrt(0.25 / 4 + 1 / 64) / 1.25),
        "eval/wilson_low": pytest.approx(0.1500, abs=5e-5),
        "eval/wilson_high": pytest.approx(0.8500, abs=5e-5),
        "eval/undecided": 0,
        "eval/accuracy/x": 1.0,
        "eval/accuracy/y": pytest.approx(1 / 3),
    }


def test_undecided_responses_are_counted_and_never_right():
    """A dead scorer makes no model look worse unseen: the row says how many responses it could not decide."""

    class Unsure(Answers):
        def answer(self, *arguments, **settings):
            groups = super().answer(*arguments, **settings)
            unknown = [dataclasses.replace(one, decided=False) for one in groups[0].rollouts]
            return [dataclasses.replace(groups[0], rollouts=tuple(unknown)), *groups[1:]]

    items = [item(name, "one") for name in "abcd"]
    found = evaluate(cast(Actor, Unsure({"a", "b"})), {}, items, Sampling(0.0), seed=0, step=3)
    assert found.overall == Score(1, 4) and found.undecided == 1 and found.metrics()["eval/undecided"] == 1
    assert Evaluation.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_json_gives_the_same_back_to_the_bit():
    before = Evaluation(Score(2, 9), {"taught/read": Score(2, 7), "hidden/dax": Score(0, 2)})
    assert Evaluation.from_json(json.loads(json.dumps(before.to_json()))) == before
    assert list(Evaluation.from_json(before.to_json()).table()) == list(before.table())


def test_the_rows_of_a_run_hold_what_its_checkpoint_holds(straight):
    """A run that continues prints the table of the run that began."""
    rows = runs.metrics(straight)
    host = json.loads((straight / "checkpoints" / "6" / "host" / "metadata").read_text())
    for name, row in (("first", rows[0]), ("last", rows[-1])):
        metrics = Evaluation.from_json(host[name]).metrics()
        assert {key: row[key] for key in metrics} == metrics
        score = Score(round(8 * row["eval/accuracy"]), 8)
        assert row["eval/standard_error"] == score.standard_error > 0
        assert (row["eval/wilson_low"], row["eval/wilson_high"]) == score.interval()
