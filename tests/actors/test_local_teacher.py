"""The teacher in this process: its answers are scored, and a candidate always has a text that ends with its box."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest

from tests import tiny_model
from tests.actors.test_actor import spoken
from zppo_jax import prompts
from zppo_jax.actors import local_teacher
from zppo_jax.actors.actor import Actor
from zppo_jax.actors.local_teacher import LocalTeacher
from zppo_jax.rewards import ScoringPool
from zppo_jax.rollout.kept import Kept
from zppo_jax.rollout.sample import sample
from zppo_jax.rollout.shapes import Shapes
from zppo_jax.warmstart import tiny
from zppo_jax.zppo import Candidate

MAX_TOKENS = 6
CANDIDATES = [
    Candidate("<think>\nfirst this and then that </think> \\boxed{12}", "12"),
    Candidate("no box at all", None),
    Candidate("<think>\nsay it \\boxed{3} and go on for a long, long time", "3"),
]


@pytest.fixture(scope="module")
def actor():
    with ScoringPool(1, 10.0) as scorer:
        yield Actor(tiny_model.engine(), tiny_model.processor(), scorer, "final")


def teacher(actor, **changes) -> LocalTeacher:
    settings = {"num_rollouts": 2, "temperature": 1.0, "top_p": 1.0, "max_tokens": MAX_TOKENS}
    return LocalTeacher(tiny_model.model(seed=1).params, actor, **(settings | changes))


def compressed(of: LocalTeacher, candidates=CANDIDATES):
    return of.compress(candidates, seed=0, step=1).texts


def check_fallback(text: str, candidate: Candidate) -> None:
    """The end of the response in at most MAX_TOKENS tokens, and the original box last."""
    box = "" if candidate.answer is None else f"\\boxed{{{candidate.answer}}}"
    assert text.endswith(box) and text.count("\\boxed") <= 1 + (candidate.answer is not None)
    body = text.removesuffix(box).strip()
    assert len(tiny_model.processor().encode_text(body)) <= MAX_TOKENS
    assert body and " ".join(candidate.text.split()).find(" ".join(body.split())[-3:]) >= 0


def test_without_a_compressor_every_candidate_falls_back(actor):
    summaries = compressed(teacher(actor))
    assert set(summaries) == set(CANDIDATES)
    for candidate in CANDIDATES:
        check_fallback(summaries[candidate], candidate)
        assert summaries[candidate] != candidate.text


def test_short_responses_stay_whole(actor):
    short = Candidate("<think>\nab </think> \\boxed{1}", "1")
    assert compressed(teacher(actor, max_tokens=100), [short])[short] == "ab\n\\boxed{1}"


class Script:
    """An engine that answers the compression prompts in turn, and remembers what it was asked."""

    def __init__(self, *texts: str, longest: int = 10_000):
        self.texts, self.kept = texts, Kept()
        self.shapes = Shapes((longest,), 0, 0)

    def sample(self, params, requests):
        self.requests = list(requests)
        return [[spoken(text)] for _, text in zip(requests, self.texts, strict=True)]


@pytest.fixture(autouse=True)
def scripts_answer(monkeypatch):
    """A Script answers by itself, any other engine really samples."""

    def answer(engine, params, requests):
        chosen = engine.sample if isinstance(engine, Script) else functools.partial(sample, engine)
        return chosen(params, requests)

    monkeypatch.setattr(local_teacher, "sample", answer)


def scripted(actor, *texts: str, **settings) -> Actor:
    quiet = tiny.processor(enable_thinking=False)
    return dataclasses.replace(actor, engine=Script(*texts, **settings), processor=quiet)


def test_a_good_summary_is_taken(actor):
    compressor = scripted(actor, "<summary> first, that: \\boxed{12} </summary>", "<summary>lost</summary>", "")
    summaries = compressed(teacher(actor, compressor=compressor))
    assert summaries[CANDIDATES[0]] == "first, that: \\boxed{12}"
    assert summaries[CANDIDATES[1]] == "lost"
    check_fallback(summaries[CANDIDATES[2]], CANDIDATES[2])


@pytest.mark.parametrize(
    "output", ["", "<summary>so \\boxed{13}</summary>", "<summary>no box</summary>", "\\boxed{12}"]
)
def test_a_summary_without_the_original_box_is_not_taken(output, actor):
    compressor = scripted(actor, output)
    summaries = compressed(teacher(actor, compressor=compressor), CANDIDATES[:1])
    check_fallback(summaries[CANDIDATES[0]], CANDIDATES[0])


def test_refused_summaries_are_counted_by_author_and_reason(actor):
    """A response without an answer whose summary has a box, and one spelt otherwise, are no longer refused."""
    half = Candidate("<think>\nhalf </think> \\boxed{\\frac{1}{2}}", "\\frac{1}{2}", "teacher")
    lost = Candidate("<think>\nseven </think> \\boxed{7}", "7", "teacher")
    outputs = (
        "<summary>first \\boxed{13}</summary>",
        "<summary>nothing found \\boxed{4}</summary>",
        "<summary>say it</summary>",
        "<summary>a half: \\boxed{0.5}</summary>",
        "",
    )
    made = teacher(actor, compressor=scripted(actor, *outputs)).compress([*CANDIDATES, half, lost], seed=0, step=1)
    assert made.num_asked == 5
    assert made.refused == {
        ("student", "other_answer"): 1,
        ("student", "no_answer"): 1,
        ("teacher", "no_summary"): 1,
    }
    assert made.texts[CANDIDATES[1]] == "nothing found" and made.texts[half] == "a half: \\boxed{\\frac{1}{2}}"
    check_fallback(made.texts[lost], lost)


@pytest.mark.parametrize(
    ("answer_type", "answer", "found", "reason"),
    [
        ("numeric", "1/2", "0.5", None),
        ("counting", "three", "3", "other_answer"),  # no rule reads the word, in either place
        ("clicking", "[0.5, 0.3]", "[0.50,0.30]", "other_answer"),
        ("clicking", "[0.5, 0.3]", "[0.5,0.3]", None),
        ("anls", "1234", "1244", "other_answer"),  # near enough for a reward, and another answer
        ("multiple_choice", "B", "(b)", None),
    ],
)
def test_answers_are_compared_either_way_and_never_by_nearness(actor, answer_type, answer, found, reason):
    compressor = scripted(actor, f"<summary>so \\boxed{{{found}}}</summary>")
    candidate = Candidate(f"hm \\boxed{{{answer}}}", answer, "student", answer_type)
    made = teacher(actor, compressor=compressor).compress([candidate], seed=0, step=1)
    assert made.refused == ({} if reason is None else {("student", reason): 1})
    assert made.texts[candidate].endswith(f"\\boxed{{{answer}}}")


def test_the_compressor_is_asked_greedily_once_for_each_candidate(actor):
    compressor = scripted(actor, "", "", "")
    compressed(teacher(actor, compressor=compressor), [*CANDIDATES, *CANDIDATES])
    asked: Any = compressor.engine
    assert [request.num_samples for request in asked.requests] == [1, 1, 1]
    assert {(request.sampling.temperature, request.draw.purpose) for request in asked.requests} == {(0.0, "compress")}
    text = tiny_model.processor().tokenizer.decode(asked.requests[0].features.token_ids_T, skip_special_tokens=False)
    assert prompts.compress_text(CANDIDATES[0].text) in text
    assert text.endswith("<think>\n\n</think>\n\n"), "without thinking: 512 tokens leave no room for it"
    assert not len(asked.requests[0].features.patches_IC)


def test_a_response_too_long_to_compress_falls_back(actor):
    """Broken bytes decode to U+FFFD, which takes more tokens than it was sampled with; the others are compressed."""
    long = Candidate("�" * 400 + " \\boxed{5}", "5")
    longest = 64 + tiny_model.processor().features(prompts.compress_text(CANDIDATES[0].text), ()).num_tokens
    compressor = scripted(actor, "<summary>short \\boxed{12}</summary>", longest=longest)
    made = teacher(actor, compressor=compressor).compress([long, CANDIDATES[0]], seed=0, step=1)
    assert made.texts[CANDIDATES[0]] == "short \\boxed{12}"
    assert made.texts[long].endswith("\\boxed{5}") and made.refused == {("student", "too_long"): 1}


def test_a_compressor_that_talks_rubbish_falls_back(actor):
    """A random model, really sampled."""
    longest = max(tiny_model.processor().features(prompts.compress_text(c.text), ()).num_tokens for c in CANDIDATES)
    shapes = dataclasses.replace(tiny_model.SHAPES, buckets=(longest,))
    compressor = dataclasses.replace(actor, engine=tiny_model.engine(4, 4, shapes))
    with_one, without = (compressed(teacher(actor, compressor=c)) for c in (compressor, None))
    assert with_one == without


def test_nothing_to_compress(actor):
    assert compressed(teacher(actor), []) == compressed(teacher(actor, compressor=scripted(actor)), []) == {}


def test_answers_are_scored_and_fresh_on_every_visit(actor):
    items = tiny_model.items()[:2]
    answering = teacher(actor)
    groups = answering.answer(items, seed=0, step=1)
    assert [group.prompt.uid for group in groups] == [one.prompt.uid for one in items]
    assert [len(group.rollouts) for group in groups] == [2, 2]
    assert all(rollout.status for group in groups for rollout in group.rollouts)
    again = answering.answer(items, seed=0, step=2)
    pairs = [(g.rollouts[0].token_ids_T, h.rollouts[0].token_ids_T) for g, h in zip(groups, again, strict=True)]
    assert any(not np.array_equal(a, b) for a, b in pairs)


def test_the_teacher_answers_with_its_own_parameters_and_settings(actor):
    items = tiny_model.items()[:1]
    (own,) = teacher(actor, temperature=0.0).answer(items, seed=0, step=1)
    first, second = (rollout.token_ids_T for rollout in own.rollouts)
    np.testing.assert_array_equal(first, second)
    student = dataclasses.replace(teacher(actor, temperature=0.0), params=tiny_model.model().params)
    (other,) = student.answer(items, seed=0, step=1)
    assert not np.array_equal(first, other.rollouts[0].token_ids_T)
    narrow, wide = (
        teacher(actor, top_p=top_p, num_rollouts=6).answer(items, seed=0, step=1)[0] for top_p in (1e-6, 1.0)
    )
    assert {rollout.token_ids_T.tobytes() for rollout in narrow.rollouts} == {first.tobytes()}
    assert len({rollout.token_ids_T.tobytes() for rollout in wide.rollouts}) > 1
