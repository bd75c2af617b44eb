"""What is asked before the student is done: nothing that would not be asked afterwards, and as much as is certain."""

from __future__ import annotations

import random

import numpy as np

from tests import tiny_model
from zppo_jax.data.processing import EncodedPrompt
from zppo_jax.keys import RandomStream
from zppo_jax.teacher.ahead import Ahead
from zppo_jax.types import Rollout
from zppo_jax.zppo import select
from zppo_jax.zppo.select import Tally, certain

SIZE, THRESHOLD = 4, 0.5
STREAM = RandomStream(0, 1, "pre_cap_ties")


def ranked(right: dict[str, int], stream: RandomStream = STREAM) -> list[str]:
    """The hard questions, hardest first, of groups with so many right rollouts."""
    hard = [name for name, count in right.items() if count / SIZE < THRESHOLD]
    return sorted(hard, key=lambda name: (right[name] / SIZE, stream.hash(name)))


def test_what_is_certain_comes_true():
    """Random groups, of which a random part is known: all that is announced is in the cap, whatever the rest gives; if
    all is known, all of the cap is announced."""
    rng, num_early = random.Random(0), 0
    for trial in range(2000):
        stream, limit = RandomStream(0, trial, "pre_cap_ties"), rng.randint(0, 5)
        groups = {f"q{i}": [rng.random() < 0.4 for _ in range(SIZE)] for i in range(rng.randint(1, 8))}
        known = {name: rng.randint(0, SIZE) for name in groups}
        tallies = {
            name: Tally(SIZE, sum(group[: known[name]]), known[name] - sum(group[: known[name]]))
            for name, group in groups.items()
        }
        cap = ranked({name: sum(group) for name, group in groups.items()}, stream)[:limit]
        found = certain(tallies, THRESHOLD, limit, stream)
        assert found <= set(cap)
        num_early += len(found)
        whole = {name: Tally(SIZE, sum(group), SIZE - sum(group)) for name, group in groups.items()}
        assert certain(whole, THRESHOLD, limit, stream) == set(cap)
        assert certain(whole, THRESHOLD, limit, stream, num_elsewhere=limit) == set()
        assert certain(tallies, THRESHOLD, None, stream) == {
            name for name, one in tallies.items() if one.wrong > SIZE * (1 - THRESHOLD)
        }
    assert num_early > 300


def test_the_order_is_that_of_the_pre_cap():
    groups = tiny_model.groups()
    outcomes = [group.outcome() for group in groups]
    hard = select.ranked(select.hard(outcomes), STREAM)
    tallies = {
        one.question_id: Tally(len(one.correct), sum(one.correct), len(one.correct) - sum(one.correct))
        for one in outcomes
    }
    for limit in range(len(hard) + 1):
        assert certain(tallies, 0.5, limit, STREAM) == {one.question_id for one in hard[:limit]}


def rollout(correct: bool, decided: bool = True) -> Rollout:
    return Rollout(np.zeros(0, np.int32), np.zeros(0, np.float32), "stop", "", correct, None, "ok", decided)


def test_each_question_is_announced_once_as_soon_as_it_is_certain():
    items, announced = tiny_model.items()[:3], list[list[str]]()

    def announce(new: list[EncodedPrompt]) -> None:
        announced.append([item.prompt.question.id for item in new])

    follow = Ahead(announce, items, SIZE, THRESHOLD, 2, STREAM)  # type: ignore[arg-type]
    names = [item.prompt.question.id for item in items]
    follow({(0, 0): rollout(True), (1, 0): rollout(False), (2, 0): rollout(True)})
    follow({(1, number): rollout(False, decided=number != 1) for number in (1, 2)})
    assert announced == [], "two known to be wrong of four could still be half"
    follow({(0, 1): rollout(True), (2, 1): rollout(True)})
    assert announced == [], "the others cannot be hard any more"
    follow({(1, 3): rollout(False)})
    assert announced == [[names[1]]], "as soon as three are wrong"
    follow({(0, 2): rollout(True)})
    assert announced == [[names[1]]]
