"""Held-out accuracy: its arithmetic, its names in metrics.jsonl, and the table that is made from a row."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from typing import Any, cast

import numpy as np
import pytest

from tests import runs, tiny_model
from zppo_jax.actors.actor import Actor
from zppo_jax.data.processing import PromptProcessing
from zppo_jax.data.reading import Reading
from zppo_jax.evaluate import Graded, HeldOut, Score, heldout, metrics, table
from zppo_jax.keys import RandomStream
from zppo_jax.parallel import Hosts
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.kept import Kept
from zppo_jax.types import Group, Question, Rollout

GREEDY = Sampling(temperature=0.0)


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
    """About 95 % of the intervals contain the known accuracy; for 0.995 only 63 % of the usual intervals do."""
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
    """An actor that is right on chosen questions, and records its calls."""

    def __init__(self, right: set[str]) -> None:
        self.right, self.asked = right, []
        self.engine = self
        self.kept: Any = Kept()

    def answer(self, params, items, num_samples, sampling: Sampling, stream: RandomStream) -> list[Group]:
        assert num_samples == 1 and params == {} and stream == RandomStream(seed=0, step=3, purpose="evaluate")
        self.sampling = sampling
        self.asked.append([item.prompt.uid for item in items])
        self.kept.features._held = {item.prompt.uid: ("features", 0) for item in items}
        none = np.zeros(0, np.int32)
        return [
            Group(
                item.prompt,
                item.features,
                (Rollout(none, none, "stop", "", item.prompt.question.id in self.right, None, ""),),
            )
            for item in items
        ]


def held_out(answers: Answers, *levels: str, sampling: Sampling = GREEDY, hosts: Hosts | None = None) -> HeldOut:
    """Questions a, b, c and so on of these levels, each with an image of 3 kB."""
    image = np.zeros((32, 32, 3), np.uint8)
    questions = [Question("abcdef"[index], "?", (image,), "1", "math", level) for index, level in enumerate(levels)]
    process = PromptProcessing(tiny_model.processor(), tiny_model.TEMPLATE)
    reading = Reading(cast(Any, questions), process)
    numbers = range(len(questions))
    return HeldOut(cast(Actor, answers), reading, numbers, sampling, every=3, seed=0, hosts=hosts or Hosts())


def test_questions_without_a_level_count_overall_alone():
    row = dict(held_out(Answers({"b"}), "", "x", "", sampling=Sampling()).run({}, 3))
    assert {name for name in row if "/" in name.removeprefix("eval/")} == {"eval/accuracy/x", "eval/questions/x"}
    assert row["eval/questions"] == 3


def test_levels_are_sorted_and_add_up_to_all():
    answers = Answers({"b", "d"})
    row = dict(held_out(answers, "y", "x", "y", "y", sampling=Sampling(0.5, top_k=3)).run({}, 3))
    assert answers.sampling == Sampling(0.5, top_k=3)
    assert answers.asked == [[f"held-out/{name}" for name in "abcd"]]
    assert row == {
        "eval/accuracy": 0.5,
        "eval/standard_error": pytest.approx(math.sqrt(0.25 / 4 + 1 / 64) / 1.25),
        "eval/wilson_low": pytest.approx(0.1500, abs=5e-5),
        "eval/wilson_high": pytest.approx(0.8500, abs=5e-5),
        "eval/questions": 4,
        "eval/undecided": 0,
        "eval/skipped": 0,
        "eval/accuracy/x": 1.0,
        "eval/questions/x": 1,
        "eval/accuracy/y": pytest.approx(1 / 3),
        "eval/questions/y": 3,
    }
    assert [name for name in row if "accuracy/" in name] == ["eval/accuracy/x", "eval/accuracy/y"]
    shown = table(row)
    assert list(shown) == ["x", "y", "all"]
    assert shown["x"] == (1.0, pytest.approx(0.2065, abs=5e-5), 1.0), "one right answer proves little"
    assert shown["y"] == (1 / 3, *Score(1, 3).interval()) and shown["all"] == (0.5, *Score(2, 4).interval())


def test_questions_in_pieces_are_those_in_one_piece(monkeypatch):
    """Two images fit into a piece: the same responses to the same prompts in the same order."""
    levels = ("y", "x", "y", "y", "x")
    whole, parts = Answers({"b", "d"}), Answers({"b", "d"})
    expected = held_out(whole, *levels).graded({}, 3)
    monkeypatch.setattr(heldout, "PIECE_BYTES", 2 * 32 * 32 * 3)
    evaluator = held_out(parts, *levels)
    assert evaluator.graded({}, 3) == expected
    assert [len(asked) for asked in parts.asked] == [2, 2, 1]
    assert [uid for asked in parts.asked for uid in asked] == whole.asked[0]
    assert not parts.kept.features._held, "the features of a piece are not kept for the next"
    assert evaluator.graded({}, 3) == expected, "nor are the pieces"
    monkeypatch.setattr(heldout, "PIECE_BYTES", 1)
    assert [len(piece) for piece in evaluator.encoded()] == [1] * 5, "one at least"
    assert list(dataclasses.replace(evaluator, numbers=[]).encoded()) == []


def test_questions_of_one_piece_are_encoded_once(monkeypatch):
    evaluator, counted = held_out(Answers({"b"}), "y", "x"), []
    real = PromptProcessing.item
    monkeypatch.setattr(PromptProcessing, "item", lambda *rest: counted.append(1) or real(*rest))
    first = list(evaluator.encoded())
    assert [piece[0] is other[0] for piece, other in zip(first, evaluator.encoded(), strict=True)] == [True]
    assert len(counted) == 2


def test_hosts_evaluate_their_shares_of_one_evaluation():
    """Of five questions the second host has two; all hosts know all responses, in the order of the questions."""
    levels, right = ("y", "x", "y", "y", "x"), {"b", "d"}
    alone = held_out(Answers(right), *levels)

    class Second(Hosts):
        def gather_dealt(self, share, what):
            assert what == "the evaluation"
            other = [one and list(one) for one in dataclasses.replace(alone, numbers=alone.numbers[::2]).graded({}, 3)]
            both = itertools.zip_longest(other, json.loads(json.dumps(share)))
            return [row for pair in both for row in pair if row is not None]

    second = held_out(Answers(right), *levels, hosts=Second(1, 2))
    assert dataclasses.replace(second, numbers=alone.numbers[1::2]).graded({}, 3) == alone.graded({}, 3)


def test_a_row_without_an_evaluation_or_of_an_earlier_version_has_no_table():
    assert table({"step": 3, "eval/accuracy": None, "eval/questions": None}) == {}
    assert table({"eval/accuracy": 0.5, "eval/accuracy/x": 0.5, "eval/wilson_low": 0.1}) == {}
    assert table({"eval/accuracy": 0.25, "eval/questions": 8}) == {"all": (0.25, *Score(2, 8).interval())}


def test_undecided_responses_are_counted_and_never_right():
    """A dead scorer cannot silently make a model look worse: the row has the number of undecided responses."""

    class Unsure(Answers):
        def answer(self, *arguments, **settings):
            groups = super().answer(*arguments, **settings)
            unknown = [dataclasses.replace(one, decided=False) for one in groups[0].rollouts]
            return [dataclasses.replace(groups[0], rollouts=tuple(unknown)), *groups[1:]]

    evaluator = held_out(Unsure({"a", "b"}), *["one"] * 4)
    assert [one and (one.correct, one.decided) for one in evaluator.graded({}, 3)] == [
        *((False, False), (True, True), (False, True), (False, True)),
    ]
    row = dict(evaluator.run({}, 3))
    assert row["eval/accuracy"] == 0.25 and row["eval/questions"] == 4 and row["eval/undecided"] == 1


def test_json_gives_the_same_table_back_to_the_bit():
    """From a row of metrics.jsonl: the accuracy of two of seven questions survives JSON to the bit."""
    graded = [Graded("taught/read", number < 2, True) for number in range(7)]
    row = metrics([*graded, *[Graded("hidden/dax", False, True)] * 2])
    shown = table(json.loads(json.dumps(row)))
    assert shown == table(row) and list(shown) == ["hidden/dax", "taught/read", "all"]
    assert shown["taught/read"] == (2 / 7, *Score(2, 7).interval()) and shown["all"][0] == 2 / 9


def test_the_rows_of_a_run_hold_its_table(straight):
    """A run that continues prints the table of the run that began: it is read from the rows."""
    rows = runs.metrics(straight)
    evaluated = [row for row in rows if table(row)]
    assert [row["step"] for row in evaluated] == [0, 3, 6]
    for row in evaluated:
        score = Score(round(8 * row["eval/accuracy"]), 8)
        assert row["eval/questions"] == 8 and table(row)["all"] == (score.accuracy, *score.interval())
        assert row["eval/standard_error"] == score.standard_error > 0
        assert (row["eval/wilson_low"], row["eval/wilson_high"]) == score.interval()
        levels = {name: row[f"eval/questions/{name}"] for name in table(row) if name != "all"}
        assert sum(levels.values()) == 8 and len(levels) > 1
        assert sum(round(row[f"eval/accuracy/{name}"] * count) for name, count in levels.items()) == score.correct
