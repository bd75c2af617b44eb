"""Sessions: ends of responses, cancelling, refusals, and that nothing depends on the schedule.

A token is a letter here, so that stop strings can be chosen from the model's text.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest

from tests.rollout import build
from zppo_jax.keys import RandomStream
from zppo_jax.models import qwen3_5
from zppo_jax.rollout.engine import Engine
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.requests import Request, Sample
from zppo_jax.rollout.sample import sample
from zppo_jax.rollout.session import Event, Session
from zppo_jax.rollout.shapes import Shapes

STOP_IDS, ENDLESS, FORBIDDEN = (3, 17), (-1, -2), (5, 6, 7, 8, 9)
SHAPES = Shapes(buckets=(6, 12), patch_slots=16, max_new_tokens=24)
CHUNKS = (1, 3, 8)


@functools.cache
def model(stop_ids: tuple[int, ...] = STOP_IDS) -> qwen3_5.Model:
    return build.small_model(40, seed=4, stop_ids=stop_ids)


def engine(chunk: int = 3, stop_ids: tuple[int, ...] = STOP_IDS, num_slots: int = 4) -> Engine:
    # The stop ids are arguments of the program: other ids share it.
    made = build.engine(model(), "session", SHAPES, num_slots, 2, chunk, FORBIDDEN, decode_text=build.letters)
    return dataclasses.replace(made, config=model(stop_ids).config)


def request(number: int, num_samples: int = 1, **settings: Any) -> Request:
    """Prompts of 2 to 13 tokens."""
    ids = np.random.default_rng(number).integers(10, 40, 2 + number % 12)
    return Request(f"q{number}", build.text_features(ids), num_samples, draw=RandomStream(7), **settings)


def answers(requests: list[Request], chunk: int = 3, **settings: Any) -> list[list[Sample]]:
    return sample(engine(chunk, **settings), model().params, requests)


def same(one: Sample, other: Sample) -> None:
    np.testing.assert_array_equal(one.token_ids_T, other.token_ids_T)
    np.testing.assert_allclose(one.logprobs_T, other.logprobs_T, atol=1e-4)
    np.testing.assert_allclose(one.kept_logprobs_T, other.kept_logprobs_T, atol=1e-4)
    assert one.finish_reason == other.finish_reason


def endless(numbers: range, num_samples: int = 1) -> list[list[Sample]]:
    return answers([request(number, num_samples) for number in numbers], stop_ids=ENDLESS)


# ---------------------------------------------------------------- how a response ends


def test_several_stop_ids_each_end_a_response():
    """At the first of them, which is part of the response; without stop ids the same tokens go on."""
    stopped, whole = answers([request(number, 3) for number in range(12)]), endless(range(12), 3)
    last = set()
    for one, free in zip((s for group in stopped for s in group), (s for group in whole for s in group), strict=True):
        places = np.flatnonzero(np.isin(free.token_ids_T, STOP_IDS))
        length = int(places[0]) + 1 if len(places) else SHAPES.max_new_tokens
        assert free.finish_reason == "length" and len(free.token_ids_T) == SHAPES.max_new_tokens
        assert one.finish_reason == ("stop" if len(places) else "length")
        np.testing.assert_array_equal(one.token_ids_T, free.token_ids_T[:length])
        np.testing.assert_allclose(one.logprobs_T, free.logprobs_T[:length], atol=1e-4)
        last |= {int(one.token_ids_T[-1])} if len(places) else {"length"}
    assert last == {*STOP_IDS, "length"}, "the test needs all three ends"


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_response_ends_at_the_token_that_completes_a_stop_string(chunk):
    """Strings of one to three tokens that end at every position of a response, alone or as the second of two."""
    numbers = range(6)
    free = [group[0] for group in endless(numbers)]
    asked, expected = [], []
    for number in numbers:
        text = build.letters(free[number].token_ids_T)
        for end in range(1, SHAPES.max_new_tokens + 1):
            stop = text[max(0, end - 1 - end % 3) : end]
            strings = ("never said", stop) if end % 2 else (stop,)
            asked.append(request(number, stop_strings=strings))
            expected.append(text.index(stop) + len(stop))
    assert len(set(expected)) == SHAPES.max_new_tokens
    for place, (group, length) in enumerate(zip(answers(asked, chunk, stop_ids=ENDLESS), expected, strict=True)):
        (one,), whole = group, free[place // SHAPES.max_new_tokens]
        np.testing.assert_array_equal(one.token_ids_T, whole.token_ids_T[:length])
        np.testing.assert_allclose(one.logprobs_T, whole.logprobs_T[:length], atol=1e-4)
        assert len(one.kept_logprobs_T) == length and one.finish_reason == "stop"


def test_stop_ids_and_stop_strings_whichever_comes_first():
    """A string that only tokens after the stop id complete changes nothing, nor does the stop id's letter."""
    plain = [group[0] for group in answers([request(number) for number in range(12)])]
    number = next(n for n, one in enumerate(plain) if one.finish_reason == "stop" and len(one.token_ids_T) > 4)
    text = build.letters(plain[number].token_ids_T)
    after = build.letters(endless(range(number, number + 1))[0][0].token_ids_T)[len(text) - 1 : len(text) + 2]
    strings = [(after,), (text[-1],), (text[1:3],)]
    late, at_stop_id, early = (group[0] for group in answers([request(number, stop_strings=one) for one in strings]))
    same(late, plain[number])
    same(at_stop_id, plain[number])
    assert len(early.token_ids_T) == text.index(text[1:3]) + 2 and early.finish_reason == "stop"


@pytest.mark.parametrize("limit", [1, 2, 23, 24, 1000])
def test_a_request_has_its_own_limit(limit):
    """And never more than the engine's; a stop at the very last token is a stop."""
    free = endless(range(2))[1][0]
    length = min(limit, SHAPES.max_new_tokens)
    (limited,), (stopped,) = answers(
        [
            request(1, max_new_tokens=limit),
            request(1, max_new_tokens=limit, stop_strings=(build.letters(free.token_ids_T[:length]),)),
        ],
        stop_ids=ENDLESS,
    )
    for one, reason in ((limited, "length"), (stopped, "stop")):
        np.testing.assert_array_equal(one.token_ids_T, free.token_ids_T[:length])
        assert one.finish_reason == reason


def test_banned_ids_never_appear():
    """Not at any temperature, though the model would sample them; nor do they count in the log-probabilities."""
    settings = (Sampling(temperature=0.0), Sampling(), Sampling(temperature=5.0), Sampling(temperature=5.0, top_k=30))
    said = set()
    for one in settings:
        samples = answers([request(number, 3, sampling=one) for number in range(8)], stop_ids=ENDLESS)
        tokens = np.concatenate([s.token_ids_T for group in samples for s in group])
        assert not np.isin(tokens, FORBIDDEN).any(), one
        said |= set(tokens.tolist())
    assert said == set(range(40)) - set(FORBIDDEN), "all others are said"


def test_no_samples_and_no_tokens_are_answered_with_nothing():
    none, one, empty = answers([request(0, 0), request(1), request(2, max_new_tokens=0)])
    assert none == [] and empty == []
    same(one[0], answers([request(1)])[0][0])
    fresh = Session(engine(), model().params)
    tickets = [fresh.submit(request(0, 0)), fresh.submit(request(2, max_new_tokens=0))]
    assert not fresh.busy and fresh.advance() == [] and len(set(tickets)) == 2


# ---------------------------------------------------------------- events


def run(one: Session, at_most: int = 1000) -> list[Event]:
    events = []
    while one.busy:
        events += one.advance()
        at_most -= 1
        assert at_most, "a session that never ends"
    return events


@pytest.mark.parametrize("chunk", CHUNKS)
def test_events_add_up_to_the_samples(chunk):
    one = Session(engine(chunk), model().params)
    asked = [request(0, 3), request(1, 2, stop_strings=("a", "b", "k")), request(13, 1, max_new_tokens=5)]
    tickets = [one.submit(each) for each in asked]
    events = run(one)
    for ticket, each in zip(tickets, asked, strict=True):
        for index in range(each.num_samples):
            mine = [event for event in events if (event.ticket, event.index) == (ticket, index)]
            assert [event.sample is not None for event in mine] == [False] * (len(mine) - 1) + [True]
            whole = mine[-1].sample
            assert whole is not None
            np.testing.assert_array_equal(np.concatenate([event.token_ids_K for event in mine]), whole.token_ids_T)
            np.testing.assert_array_equal(np.concatenate([event.logprobs_K for event in mine]), whole.logprobs_T)
            assert all(len(event.token_ids_K) == len(event.logprobs_K) <= chunk for event in mine)


@pytest.mark.parametrize(("chunk", "num_slots"), [(1, 4), (8, 4), (3, 7), (3, 1)])
def test_chunk_slots_order_and_time_of_arrival_change_nothing(chunk, num_slots):
    """Requests of different settings that arrive while others run, in any order, get the same answers as alone."""
    sampling = (Sampling(), Sampling(temperature=0.0), Sampling(top_k=5), Sampling(temperature=2.0, top_p=0.9))
    asked = [request(n, 1 + n % 3, sampling=sampling[n % 4], max_new_tokens=4 + n % 20) for n in range(16)]
    alone = [answers([each])[0] for each in asked]
    one, found, order = Session(engine(chunk, num_slots=num_slots), model().params), {}, []
    rng = np.random.default_rng(chunk + num_slots)
    for number in rng.permutation(16):
        order.append((one.submit(asked[number]), number))
        for _ in range(int(rng.integers(0, 3))):
            found |= {(event.ticket, event.index): event.sample for event in one.advance() if event.sample}
    found |= {(event.ticket, event.index): event.sample for event in run(one) if event.sample}
    assert len(found) == sum(each.num_samples for each in asked)
    for ticket, number in order:
        for index, expected in enumerate(alone[number]):
            same(found[ticket, index], expected)


# ---------------------------------------------------------------- cancelling


@pytest.mark.parametrize("before", [0, 1, 2, 4])
def test_what_is_cancelled_ends_there_and_its_slots_are_free(before):
    """Before and after any number of chunks; other requests are not affected, and the tokens so far are returned."""
    long = [request(number, 2) for number in (1, 2, 3)]
    alone = [group for group in answers(long, stop_ids=ENDLESS)]
    one = Session(engine(stop_ids=ENDLESS), model().params)
    tickets = [one.submit(each) for each in long]
    events = [event for _ in range(before) for event in one.advance()]
    free = one.num_free
    events += (aborted := one.cancel(tickets[0]))
    assert len(aborted) == (2 if before else 0) and one.num_free == free + len(aborted)
    for event in aborted:
        assert event.sample is not None and event.sample.finish_reason == "abort" and not len(event.token_ids_K)
        said = event.sample.token_ids_T
        assert len(said) == 3 * (before - 1) == len(event.sample.logprobs_T) == len(event.sample.kept_logprobs_T)
        np.testing.assert_array_equal(said, alone[0][event.index].token_ids_T[: len(said)])
    assert one.cancel(tickets[0]) == [], "once"
    later = run(one)
    assert not any(event.ticket == tickets[0] for event in later)
    finished = {(event.ticket, event.index): event.sample for event in later if event.sample}
    assert len(finished) == 4
    for ticket, group in zip(tickets[1:], alone[1:], strict=True):
        for index, expected in enumerate(group):
            same(finished[ticket, index], expected)


def test_a_cancelled_slot_is_filled_with_the_next_chunk():
    """Four slots, all taken by a long request: a waiting one begins in the chunk after the long one is cancelled."""
    one = Session(engine(stop_ids=ENDLESS), model().params)
    long, short = one.submit(request(1, 4)), one.submit(request(2, 4, max_new_tokens=3))
    for _ in range(2):
        one.advance()
    assert one.num_free == 0
    one.cancel(long)
    assert one.num_free == 4
    one.advance()
    assert one.num_free == 0
    finished = [event for event in one.advance() if event.sample]
    assert [event.ticket for event in finished] == [short] * 4
    assert not one.busy


def test_a_request_may_be_cancelled_between_its_samples():
    """Two slots' worth of samples run, the others still wait: none of them ever begins."""
    one = Session(engine(stop_ids=ENDLESS), model().params)
    many = one.submit(request(1, 9))
    one.advance()
    assert len(one.cancel(many)) == 4
    assert run(one) == [] and not one.busy
    again = one.submit(request(1))
    (event,) = [event for event in run(one) if event.sample]
    assert event.ticket == again != many
    assert event.sample is not None
    same(event.sample, endless(range(2))[1][0])


def test_tickets_that_nobody_has_are_not_cancelled():
    one = Session(engine(), model().params)
    assert one.cancel(5) == [] and not one.busy


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("penalty", [{"repetition_penalty": 1.1}, {"presence_penalty": 0.5}])
def test_penalties_need_an_engine_that_keeps_what_was_said(penalty):
    one = Session(engine(), model().params)
    with pytest.raises(ValueError, match=r"without penalties.*Engine\(penalises=True\)"):
        one.submit(request(0, sampling=Sampling(**penalty)))
    assert not one.busy


def test_stop_strings_need_a_text():
    one = Session(dataclasses.replace(engine(), decode_text=None), model().params)
    with pytest.raises(ValueError, match=r"stop strings need Engine\(decode_text"):
        one.submit(request(0, stop_strings=("a",)))
    assert not one.busy
