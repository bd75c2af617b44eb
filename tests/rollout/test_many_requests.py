"""Ten thousand requests through one engine: each is answered once and with its own answer.

Each is one of 400 kinds (prompt, settings, number of samples and of tokens), so that for every kind there are several
that must be equal; fifty are also asked alone. They arrive while others run, and some are cancelled.
"""

from __future__ import annotations

import functools
from collections import defaultdict

import numpy as np
import pytest

from tests.rollout import build
from zppo_jax.keys import RandomStream
from zppo_jax.models import qwen3_5
from zppo_jax.rollout.engine import Engine
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.requests import Request, Sample
from zppo_jax.rollout.sample import sample
from zppo_jax.rollout.session import Session
from zppo_jax.rollout.shapes import Shapes

NUM_REQUESTS, NUM_THINGS, NUM_ALONE = 10_000, 400, 50
SHAPES = Shapes(buckets=(4, 8, 16), patch_slots=16, max_new_tokens=8)
SAMPLING = (Sampling(), Sampling(temperature=0.0), Sampling(temperature=0.7), Sampling(temperature=1.5, top_k=9))


@functools.cache
def model() -> qwen3_5.Model:
    return build.small_model(26, seed=5, stop_ids=(0, 1))


@functools.cache
def engine() -> Engine:
    return build.engine(model(), "many", SHAPES, 256, 64, 4, decode_text=build.letters)


@functools.cache
def things() -> tuple[Request, ...]:
    rng, found = np.random.default_rng(0), []
    for number in range(NUM_THINGS):
        features = build.text_features(rng.integers(2, 26, rng.integers(1, 18)))
        stops = ("".join(rng.choice(list("cdefghijklmnopqrstuvwxyz"), 1)),) if rng.random() < 0.3 else ()
        one = Request(
            f"q{number}", features, int(rng.integers(1, 4)), SAMPLING[number % 4], RandomStream(number % 3),
            int(rng.integers(1, 9)), stops,
        )  # fmt: skip
        found.append(one)
    return tuple(found)


def same(one: Sample, other: Sample) -> None:
    np.testing.assert_array_equal(one.token_ids_T, other.token_ids_T)
    np.testing.assert_allclose(one.logprobs_T, other.logprobs_T, atol=1e-4)
    assert one.finish_reason == other.finish_reason


class Caller:
    """Submits, cancels and collects at random; `answers` by ticket and number of the sample, each only once."""

    def __init__(self) -> None:
        self.rng, self.session = np.random.default_rng(1), Session(engine(), model().params)
        self.thing_of: dict[int, int] = {}
        self.answers: dict[tuple[int, int], Sample] = {}
        self.given_up: set[int] = set()
        self.unfinished: dict[int, int] = {}

    def submit(self) -> None:
        thing = int(self.rng.integers(NUM_THINGS))
        ticket = self.session.submit(things()[thing])
        assert ticket not in self.thing_of
        self.thing_of[ticket], self.unfinished[ticket] = thing, things()[thing].num_samples

    def give_one_up(self) -> None:
        ticket = int(self.rng.choice(list(self.unfinished)))
        del self.unfinished[ticket]
        self.given_up.add(ticket)
        self.take(self.session.cancel(ticket))

    def take(self, events) -> None:
        for event in events:
            if event.sample is not None:
                assert (event.ticket, event.index) not in self.answers, "answered twice"
                aborted = event.sample.finish_reason == "abort"
                assert aborted == (event.ticket in self.given_up)
                self.answers[event.ticket, event.index] = event.sample
                if not aborted:
                    self.unfinished[event.ticket] -= 1
                    if not self.unfinished[event.ticket]:
                        del self.unfinished[event.ticket]

    def run(self) -> None:
        while len(self.thing_of) < NUM_REQUESTS or self.session.busy:
            for _ in range(min(int(self.rng.integers(0, 160)), NUM_REQUESTS - len(self.thing_of))):
                self.submit()
            self.take(self.session.advance())
            while self.unfinished and self.rng.random() < 0.7:
                self.give_one_up()


@pytest.fixture(scope="module")
def caller() -> Caller:
    one = Caller()
    one.run()
    return one


def test_every_request_is_answered_once(caller):
    """A request that was not cancelled has all its samples; a cancelled one has none that goes on after it."""
    assert len(caller.thing_of) == NUM_REQUESTS and not caller.unfinished
    of_ticket = defaultdict(set)
    for ticket, index in caller.answers:
        of_ticket[ticket].add(index)
    for ticket, thing in caller.thing_of.items():
        wanted = set(range(things()[thing].num_samples))
        assert of_ticket[ticket] <= wanted if ticket in caller.given_up else of_ticket[ticket] == wanted, ticket
    reasons = [sample.finish_reason for sample in caller.answers.values()]
    counts = {reason: reasons.count(reason) for reason in ("stop", "length", "abort")}
    counters = caller.session.counters
    print(f"{counts}, {len(caller.given_up)} given up; {counters}")
    assert min(counts.values()) > 50 and len(caller.given_up) > 100
    assert counters.finished == counts["stop"] + counts["length"]


def test_equal_requests_have_equal_answers(caller):
    """All answers of one kind are the same, and begin like those that were cancelled in the middle."""
    first: dict[tuple[int, int], Sample] = {}
    for (ticket, index), one in caller.answers.items():
        if ticket not in caller.given_up:
            same(one, first.setdefault((caller.thing_of[ticket], index), one))
    assert len(first) == sum(one.num_samples for one in things())
    for ticket, index in caller.answers:
        if ticket in caller.given_up:
            said, whole = (caller.answers[ticket, index], first[caller.thing_of[ticket], index])
            np.testing.assert_array_equal(said.token_ids_T, whole.token_ids_T[: len(said.token_ids_T)])
    distinct = {sample.token_ids_T.tobytes() for sample in first.values()}
    assert len(distinct) > 0.5 * len(first), "mixed-up answers would be noticed"


def test_answers_are_those_that_a_request_has_alone(caller):
    chosen = np.random.default_rng(2).choice(list(set(caller.thing_of) - caller.given_up), NUM_ALONE, replace=False)
    for ticket in chosen.tolist():
        (alone,) = sample(engine(), model().params, [things()[caller.thing_of[ticket]]])
        for index, expected in enumerate(alone):
            same(caller.answers[ticket, index], expected)


def test_answers_keep_to_what_was_asked(caller):
    for (ticket, _), one in caller.answers.items():
        asked, said = things()[caller.thing_of[ticket]], build.letters(one.token_ids_T)
        assert len(said) <= asked.max_new_tokens
        assert all(stop not in said[:-1] for stop in (*asked.stop_strings, "a", "b"))
        ends = any(said.endswith(stop) for stop in (*asked.stop_strings, "a", "b"))
        expected = "stop" if ends else "length" if len(said) == asked.max_new_tokens else "abort"
        assert one.finish_reason == expected or one.finish_reason == "abort"


def test_nothing_is_kept_of_what_is_done(caller):
    """A session that serves for months must not grow."""
    tables = {name: value for name, value in vars(caller.session).items() if isinstance(value, dict | list)}
    sizes = {name: len(value) for name, value in tables.items()}
    assert sizes["_rows"] == 256 and all(size < 300 for size in sizes.values()), sizes
