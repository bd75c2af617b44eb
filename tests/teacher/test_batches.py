"""A teacher with separate devices: it begins while the student samples, and the clock decides nothing.

Here its lane works on the one device there is: nobody else samples meanwhile.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests import tiny_model
from tests.teacher.test_local import teacher
from zppo_jax.actors.actor import Actor
from zppo_jax.keys import RandomStream
from zppo_jax.rewards import ScoringPool
from zppo_jax.rewards.scorer import Scorer
from zppo_jax.rollout import sample as sampler
from zppo_jax.rollout.kept import Kept
from zppo_jax.rollout.lane import Lane
from zppo_jax.run.stop import StopRequested
from zppo_jax.teacher.batches import Batches
from zppo_jax.teacher.local import LocalTeacher

STREAM = RandomStream(0, 1, "teacher")


@pytest.fixture(scope="module")
def actor():
    with ScoringPool(1, 10.0) as pool:
        yield Actor(tiny_model.engine(), tiny_model.processor(), Scorer(pool, "final"))


@pytest.fixture
def beside(actor) -> Iterator[LocalTeacher]:
    """A teacher with a lane, and batches of two prompts."""
    lane = Lane()
    engine = dataclasses.replace(tiny_model.engine(), kept=Kept(), lane=lane, report=lane.note)
    made = dataclasses.replace(teacher(dataclasses.replace(actor, engine=engine)), batches=Batches(lane, 2))
    yield made
    made.close()


@pytest.fixture
def together(monkeypatch) -> list[list[str]]:
    """The prompts of each call of the sampler in the lane, in the order of the calls."""
    found: list[list[str]] = []
    real = sampler._in_lane

    def watched(engine: Any, params: Any, requests: Sequence[Any]):
        found.append([request.uid.split("/")[1] for request in requests])
        return real(engine, params, requests)

    monkeypatch.setattr(sampler, "_in_lane", watched)
    return found


def test_answers_are_those_of_a_teacher_without_devices_of_its_own(actor, beside, together):
    a, b, c, d, e, f, g = tiny_model.items()
    for announced in ([d], [a], [f], [b, c]):
        beside.ahead(announced, STREAM)
    found = dict(beside.answer([a, b, c, d, e, g], STREAM))
    assert together == [["d", "a"], ["f", "b"], ["c", "e", "g"]], "full batches, then what is left and asked"
    expected = dict(teacher(actor).answer([a, b, c, d, e, g], STREAM))
    assert found == expected and list(found)[:2] != list(expected)[:2], "f was announced and not asked"
    assert beside.actor.engine.kept.weights._made is None


def test_it_works_before_it_is_asked(beside, together):
    begun = threading.Event()
    work = sampler._in_lane

    def watched(*arguments: Any):
        begun.set()
        return work(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "_in_lane", watched)
        beside.ahead(tiny_model.items()[:1], STREAM)
        assert not begun.wait(0.2), "half a batch waits for the other half"
        beside.ahead(tiny_model.items()[1:2], STREAM)
        assert begun.wait(30)


def test_a_later_block_and_a_later_step_are_asked_again(beside, together):
    """What was announced and not asked is dropped with the answers, and with the step."""
    a, b, c, *_ = tiny_model.items()
    beside.ahead([a, b, c], STREAM)
    assert {uid for uid, _ in beside.answer([a], STREAM)} == {a.prompt.uid}
    assert {uid for uid, _ in beside.answer([c, b], STREAM)} == {b.prompt.uid, c.prompt.uid}
    beside.ahead([a], STREAM)
    beside.begin(2)
    assert len(dict(beside.answer([c], RandomStream(0, 2, "teacher")))) == 1
    assert together == [["a", "b"], ["c", "b"], ["c"]]


def test_a_stop_while_it_is_waited_for_leaves_nothing_running(beside):
    assert beside.batches is not None
    lane = beside.batches._lane

    def stop(line: str) -> None:
        raise StopRequested

    lane.report = stop
    hold = threading.Event()
    works = [lane.begin(lambda: iter_after(hold))]
    beside.ahead(tiny_model.items()[:4], STREAM)
    works += lane._works
    threading.Timer(0.3, hold.set).start()
    with pytest.raises(StopRequested):
        dict(beside.answer(tiny_model.items()[:4], STREAM))
    assert len(works) > 2 and all(work.ended for work in works)
    lane.report = None
    assert len(dict(beside.answer(tiny_model.items()[:1], STREAM))) == 1, "and it can be asked again"


def iter_after(hold: threading.Event):
    hold.wait(10)
    yield None


def test_an_error_reaches_who_asks(beside, monkeypatch):
    def broken(*_: Any):
        raise MemoryError("the device is full")
        yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "_in_lane", broken)
        beside.ahead(tiny_model.items()[:2], STREAM)
        with pytest.raises(MemoryError, match="the device is full"):
            dict(beside.answer(tiny_model.items()[:2], STREAM))
    assert len(dict(beside.answer(tiny_model.items()[:2], STREAM))) == 2


def test_a_teacher_on_the_students_devices_has_them_emptied_first(actor):
    """Before it answers, writes or gives groups; announcements start nothing."""
    calls: list[str] = []
    made = dataclasses.replace(teacher(actor, writer=actor), make_room=lambda: calls.append("room"))
    made.begin(1)
    made.ahead(tiny_model.items()[:2], STREAM)
    assert calls == []
    answers = made.answer(tiny_model.items()[:1], STREAM)
    assert calls == [] and next(answers) and calls == ["room"]
    assert len(made.write(["hm"], STREAM)) == 1 and len(calls) == 2
    made.groups(tiny_model.items()[:1], STREAM)
    assert len(calls) == 3
    made.close()
