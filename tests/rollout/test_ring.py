"""The ring of key slots: wherever the cursor is, a prompt before it is continued as by a fresh session.

Two full layers, a ring of 22 slots; the longest prompt and the longest response fill it to the last slot.
"""

from __future__ import annotations

import functools
import weakref

import numpy as np
import pytest

from tests.rollout import build
from zppo_jax.keys import RandomStream
from zppo_jax.models import qwen3_5
from zppo_jax.rollout import sample
from zppo_jax.rollout.engine import Engine
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.requests import Request, Sample
from zppo_jax.rollout.session import Session
from zppo_jax.rollout.shapes import Shapes

SHAPES = Shapes(buckets=(4, 10), patch_slots=16, max_new_tokens=12)
RING = 22


@functools.cache
def model() -> qwen3_5.Model:
    return build.small_model(50, seed=6, num_layers=4)


def engine(chunk: int = 5) -> Engine:
    return build.engine(model(), "ring", SHAPES, 3, 2, chunk)


def request(number: int, length: int, limit: int = SHAPES.max_new_tokens) -> Request:
    ids = np.random.default_rng(number).integers(0, 50, length)
    return Request(f"q{number}", build.text_features(ids), 1, Sampling(), RandomStream(1), limit)


def finish(one: Session) -> dict[int, Sample]:
    found = {}
    while one.busy:
        found |= {event.ticket: event.sample for event in one.advance() if event.sample}
    return found


def fresh(asked: Request, ring: int = RING) -> Sample:
    one = Session(engine(), model().params, ring)
    one._ring = RING  # a shorter one would be refused
    ticket = one.submit(asked)
    return finish(one)[ticket]


def cursor(one: Session) -> int:
    return int(one._slots.cursor)


def same(one: Sample, other: Sample) -> None:
    np.testing.assert_array_equal(one.token_ids_T, other.token_ids_T)
    np.testing.assert_allclose(one.logprobs_T, other.logprobs_T, atol=1e-5)


@pytest.mark.parametrize("length", [1, 5, 8, 11])
def test_the_cursor_may_stand_anywhere(length):
    """The same prompt, of every bucket and filling it or not, at all 22 places in one session."""
    asked, one, seen = request(length, length), Session(engine(), model().params), set()
    expected = fresh(asked)
    while len(seen) < RING:
        seen.add(cursor(one))
        ticket = one.submit(asked)
        same(finish(one)[ticket], expected)
        if cursor(one) in seen:
            one.submit(request(99, 2, limit=1))
            finish(one)
    assert len(expected.token_ids_T) == SHAPES.max_new_tokens


def test_rows_that_come_one_after_the_other_do_not_disturb_each_other():
    """Sixty requests of all lengths in three slots, each admitted where the cursor happens to be, eight times round."""
    rng, one = np.random.default_rng(0), Session(engine(), model().params)
    asked = [request(n, int(rng.integers(1, 12)), int(rng.integers(1, 13))) for n in range(60)]
    tickets = {one.submit(each): each for each in asked}
    places, found = set(), {}
    while one.busy:
        found |= {event.ticket: event.sample for event in one.advance() if event.sample}
        places.add(cursor(one))
    assert one.counters.steps > 5 * RING and len(places) > 10
    for ticket, each in tickets.items():
        same(found[ticket], fresh(each))


def test_the_ring_is_as_long_as_it_must_be_and_no_longer():
    """A full bucket and all new tokens use every slot: with one slot less, only the last token would be drawn without
    the prompt's first key; the log-probabilities are those of a forward pass."""
    asked = request(1, 11)
    one = fresh(asked)
    short = fresh(asked, RING - 1)
    np.testing.assert_array_equal(short.token_ids_T[:-1], one.token_ids_T[:-1])
    difference_T = np.abs(short.logprobs_T - one.logprobs_T)
    assert difference_T[:-1].max() < 1e-5 and difference_T[-1] > 1e-3
    expected_T = forward(asked, one)
    np.testing.assert_allclose(one.logprobs_T, expected_T, atol=1e-5)
    slots_used = engine().shapes.num_keys
    assert slots_used == RING == len(one.token_ids_T) + asked.features.num_tokens - 1


def forward(asked: Request, one: Sample) -> np.ndarray:
    return build.trainers_logprobs(model(), [asked.features], [[one.token_ids_T]])[0][0]


def test_a_row_keeps_its_prompt_while_shorter_neighbours_come_and_go():
    """A long response, while one-token responses take the other slots again at every step."""
    one = Session(engine(chunk=1), model().params)
    asked = request(2, 11)
    ticket, others = one.submit(asked), [request(200 + n, 1 + n % 11, limit=1) for n in range(20)]
    tickets = {one.submit(each): each for each in others}
    found = finish(one)
    same(found[ticket], fresh(asked))
    for other, each in tickets.items():
        same(found[other], fresh(each))


def test_a_prompt_that_the_ring_has_no_room_for_is_refused():
    one = Session(engine(), model().params, ring=16)
    one.submit(request(1, 5))
    with pytest.raises(ValueError, match=r"prompt q2 .* 16 key slots"):
        one.submit(request(2, 6))


def test_the_slots_of_one_ring_are_gone_before_those_of_the_next_are_made(monkeypatch):
    """A device holds one ring at a time: memory that is enough for each would not be enough for both."""
    alive, made = weakref.WeakSet(), []

    class Watched(Session):
        def __init__(self, *args, **settings):
            assert not alive
            alive.add(self)
            super().__init__(*args, **settings)
            made.append(self._ring)

    monkeypatch.setattr(sample, "Session", Watched)
    rings = build.engine(model(), "rings", Shapes(buckets=(2, 20), patch_slots=16, max_new_tokens=4), 3, 2, 5)
    found = sample.sample(rings, model().params, [request(1, 2), request(2, 19), request(3, 1)])
    assert made == [6, 24] and all(len(sample.token_ids_T) == 4 for (sample,) in found)
