"""The teacher in this process: its answers are scored, and a candidate always has a text that ends with its box.

The summaries are asked for as in a training step, by a helper whose method shows every response in one prompt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import pytest

from tests import tiny_model
from tests.actors.test_actor import spoken
from tests.zppo.builders import make_rollout
from zppo_jax.actors.actor import Actor
from zppo_jax.keys import RandomStream
from zppo_jax.parallel import Hosts
from zppo_jax.rewards import ScoringPool
from zppo_jax.rewards.scorer import Scorer
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.kept import Kept
from zppo_jax.rollout.shapes import Shapes
from zppo_jax.run.stop import StopRequested
from zppo_jax.teacher.helper import Helper
from zppo_jax.teacher.local import LocalTeacher
from zppo_jax.types import Answer, Group, Missed, Rollout
from zppo_jax.warmstart import tiny
from zppo_jax.zppo import HELPS, SUMMARY, Candidate, Help, Method, Turn, prompts
from zppo_jax.zppo.summaries import AUTHORS, REFUSALS, Author

MAX_TOKENS = 6
CANDIDATES = [
    Candidate("<think>\nfirst this and then that </think> \\boxed{12}", "12"),
    Candidate("no box at all", None),
    Candidate("<think>\nsay it \\boxed{3} and go on for a long, long time", "3"),
]


@pytest.fixture(scope="module")
def actor():
    with ScoringPool(1, 10.0) as pool:
        yield Actor(tiny_model.engine(), tiny_model.processor(), Scorer(pool, "final"))


@pytest.fixture(autouse=True)
def all_shown(monkeypatch):
    """A kind of help that shows the student's wrong responses and the teacher's right ones, all of them."""

    def choose(wrong, teacher_correct, rng):
        return (*wrong, *teacher_correct)

    row = Help("all", True, choose, SUMMARY, lambda text, candidates, texts, template: Turn(text))
    monkeypatch.setitem(HELPS, row.kind, row)


def teacher(actor, temperature=1.0, top_p=1.0, **changes) -> LocalTeacher:
    settings: dict[str, Any] = {"num_rollouts": 2, "sampling": Sampling(temperature, top_p=top_p)}
    return LocalTeacher("tiny", tiny_model.model(seed=1).params, actor, **(settings | changes))


class Answered:
    """A teacher that has already answered, and writes as `writer` does."""

    def __init__(self, writer: LocalTeacher, responses: Sequence[Rollout]) -> None:
        self.responses, self.write = responses, writer.write

    def answer(self, items, stream):
        return {item.prompt.uid: self.responses for item in items}


class Compressed(NamedTuple):
    """The text shown for each candidate, the number of summaries asked for, and the refused ones."""

    texts: dict[Candidate, str]
    num_asked: int
    refused: dict[tuple[str, str], int]


def compress(of: LocalTeacher, candidates: Sequence[Candidate], max_tokens: int = MAX_TOKENS) -> Compressed:
    """Compresses the candidates as responses to one hard question, whose prompt shows them."""
    item, kind = tiny_model.items()[0], candidates[0].answer_type if candidates else "math"
    question = dataclasses.replace(item.prompt.question, answer_type=kind)
    student, teachers = (
        tuple(make_rollout(one.text, one.author == "teacher", one.answer) for one in candidates if one.author == author)
        for author in AUTHORS
    )
    plain = tiny_model.cohort([Group(dataclasses.replace(item.prompt, question=question), item.features, student)])
    helper = Helper(
        method=Method("all", uses_replay=False, helps=("all",)),
        teacher=Answered(of, teachers),
        scorer=of.actor.scorer,
        template=tiny_model.TEMPLATE,
        codec=of.actor.processor,
        hosts=Hosts(),
        fits=lambda prompt: True,
        writes=of.writer is not None,
        max_tokens=max_tokens,
    )
    listing = helper.listing(plain, plain.outcomes, 1, seed=0, step=1)
    prompts = [prompt for refs in listing for prompt in listing.prompts_of(refs)]
    shown = {Candidate(s.response, s.answer, cast(Author, s.author), kind): s.text for p in prompts for s in p.shown}
    counts = listing.counts()
    refused = {
        (author, reason): counts[f"compress/refused/{author}/{reason}"] for author in AUTHORS for reason in REFUSALS
    }
    assert counts["compress/refused"] == sum(refused.values())
    return Compressed(shown, counts["compress/summaries"], {key: count for key, count in refused.items() if count})


def compressed(of: LocalTeacher, candidates: Sequence[Candidate] = CANDIDATES, **settings) -> dict[Candidate, str]:
    return compress(of, candidates, **settings).texts


def check_fallback(text: str, candidate: Candidate) -> None:
    """Checks for the end of the response, in at most MAX_TOKENS tokens, and the original box last."""
    box = "" if candidate.answer is None else f"\\boxed{{{candidate.answer}}}"
    assert text.endswith(box) and text.count("\\boxed") <= 1 + (candidate.answer is not None)
    body = text.removesuffix(box).strip()
    assert len(tiny_model.processor().encode_text(body)) <= MAX_TOKENS
    assert body and " ".join(candidate.text.split()).find(" ".join(body.split())[-3:]) >= 0


def test_without_a_compressor_every_candidate_falls_back(actor):
    summaries, num_asked, refused = compress(teacher(actor), CANDIDATES)
    assert set(summaries) == set(CANDIDATES) and num_asked == 0 and not refused
    for candidate in CANDIDATES:
        check_fallback(summaries[candidate], candidate)
        assert summaries[candidate] != candidate.text


def test_short_responses_stay_whole(actor):
    short = Candidate("<think>\nab </think> \\boxed{1}", "1")
    assert compressed(teacher(actor), [short], max_tokens=100)[short] == "ab\n\\boxed{1}"


class Script:
    """An engine that answers the compression prompts in turn, and remembers what it was asked."""

    def __init__(self, *texts: str, longest: int = 10_000):
        self.texts, self.kept = texts, Kept()
        self.shapes = Shapes((longest,), 0, 0)

    def sample(self, params, requests):
        self.requests = list(requests)
        return [[spoken(text)] for _, text in zip(requests, self.texts, strict=True)]


class Interrupted(Script):
    """An engine that holds the weights to decode with when the user stops the run."""

    def sample(self, params, requests):
        self.kept.weights._made = cast(Any, ("program", params, "weights"))
        raise StopRequested

    stream = sample


def test_the_memory_of_the_largest_model_is_freed_if_it_is_interrupted(actor):
    """While it answers, and while it writes."""
    stopped = dataclasses.replace(scripted(actor), engine=Interrupted())
    stream = RandomStream(0, 1, "teacher")
    with pytest.raises(StopRequested):
        list(teacher(stopped).answer(tiny_model.items()[:1], stream))
    assert stopped.engine.kept.weights._made is None
    with pytest.raises(StopRequested):
        teacher(actor, writer=stopped).write(["Shorten it."], stream)
    assert stopped.engine.kept.weights._made is None


def scripted(actor, *texts: str, **settings) -> Actor:
    quiet = tiny.processor(enable_thinking=False)
    return dataclasses.replace(actor, engine=Script(*texts, **settings), processor=quiet)


def test_a_good_summary_is_taken(actor):
    compressor = scripted(actor, "<summary> first, that: \\boxed{12} </summary>", "<summary>lost</summary>", "")
    summaries = compressed(teacher(actor, writer=compressor))
    assert summaries[CANDIDATES[0]] == "first, that: \\boxed{12}"
    assert summaries[CANDIDATES[1]] == "lost"
    check_fallback(summaries[CANDIDATES[2]], CANDIDATES[2])


@pytest.mark.parametrize(
    "output", ["", "<summary>so \\boxed{13}</summary>", "<summary>no box</summary>", "\\boxed{12}"]
)
def test_a_summary_without_the_original_box_is_not_taken(output, actor):
    compressor = scripted(actor, output)
    summaries = compressed(teacher(actor, writer=compressor), CANDIDATES[:1])
    check_fallback(summaries[CANDIDATES[0]], CANDIDATES[0])


def test_refused_summaries_are_counted_by_author_and_reason(actor):
    """Not refused: a summary with a box for a response without an answer, and an answer in another spelling."""
    half = Candidate("<think>\nhalf </think> \\boxed{\\frac{1}{2}}", "\\frac{1}{2}", "teacher")
    lost = Candidate("<think>\nseven </think> \\boxed{7}", "7", "teacher")
    outputs = (
        "<summary>first \\boxed{13}</summary>",
        "<summary>nothing found \\boxed{4}</summary>",
        "<summary>say it</summary>",
        "<summary>a half: \\boxed{0.5}</summary>",
        "",
    )
    made = compress(teacher(actor, writer=scripted(actor, *outputs)), [*CANDIDATES, half, lost])
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
        ("anls", "1234", "1244", "other_answer"),  # near enough for a reward, but another answer
        ("multiple_choice", "B", "(b)", None),
    ],
)
def test_answers_are_compared_either_way_and_never_by_nearness(actor, answer_type, answer, found, reason):
    compressor = scripted(actor, f"<summary>so \\boxed{{{found}}}</summary>")
    candidate = Candidate(f"hm \\boxed{{{answer}}}", answer, "student", answer_type)
    made = compress(teacher(actor, writer=compressor), [candidate])
    assert made.refused == ({} if reason is None else {("student", reason): 1})
    assert made.texts[candidate].endswith(f"\\boxed{{{answer}}}")


def test_the_compressor_is_asked_greedily_once_for_each_candidate(actor):
    compressor = scripted(actor, "", "", "")
    compressed(teacher(actor, writer=compressor), [*CANDIDATES, *CANDIDATES])
    asked: Any = compressor.engine
    assert [request.num_samples for request in asked.requests] == [1, 1, 1]
    assert {(request.sampling.temperature, request.draw.purpose) for request in asked.requests} == {(0.0, "write")}
    text = tiny_model.processor().tokenizer.decode(asked.requests[0].features.token_ids_T, skip_special_tokens=False)
    assert prompts.compress_text(CANDIDATES[0].text) in text
    assert text.endswith("<think>\n\n</think>\n\n"), "without thinking: 512 tokens leave no room for it"
    assert not len(asked.requests[0].features.patches_IC)


def test_a_response_too_long_to_compress_falls_back(actor):
    """Broken bytes decode to U+FFFD, which takes more tokens than were sampled; the others are compressed."""
    long = Candidate("�" * 400 + " \\boxed{5}", "5")
    longest = 64 + tiny_model.processor().features(prompts.compress_text(CANDIDATES[0].text), ()).num_tokens
    compressor = scripted(actor, "<summary>short \\boxed{12}</summary>", longest=longest)
    made = compress(teacher(actor, writer=compressor), [long, CANDIDATES[0]])
    assert made.texts[CANDIDATES[0]] == "short \\boxed{12}"
    assert made.texts[long].endswith("\\boxed{5}") and made.refused == {("student", "too_long"): 1}


def test_a_compressor_that_talks_rubbish_falls_back(actor):
    """A random model, really sampled."""
    longest = max(tiny_model.processor().features(prompts.compress_text(c.text), ()).num_tokens for c in CANDIDATES)
    shapes = dataclasses.replace(tiny_model.SHAPES, buckets=(longest,))
    compressor = dataclasses.replace(actor, engine=tiny_model.engine(4, 4, shapes))
    with_one, without = (compressed(teacher(actor, writer=one)) for one in (compressor, None))
    assert with_one == without


def test_nothing_to_compress(actor):
    for writer in (None, scripted(actor)):
        assert compress(teacher(actor, writer=writer), []) == Compressed({}, 0, {})


def test_what_is_too_long_or_has_no_writer_is_not_written(actor):
    """One text per turn, in order."""
    writer = scripted(actor, "one", "two", longest=20)
    made = teacher(actor, writer=writer).write(["short", "long " * 20, "short"], RandomStream(0, 1, "write"))
    assert [one if isinstance(one, str) else one.reason for one in made] == ["one", "too_long", "two"]
    nothing = teacher(actor).write(["short", "long"], RandomStream(0, 1, "write"))
    assert all(isinstance(one, Missed) for one in nothing) and len(nothing) == 2
    assert teacher(actor).write([], RandomStream(0, 1, "write")) == []


def test_answers_are_scored_and_fresh_on_every_visit(actor):
    items = tiny_model.items()[:2]
    answering = teacher(actor)
    groups = answering.groups(items, RandomStream(0, 1, "teacher"))
    assert [group.prompt.uid for group in groups] == [one.prompt.uid for one in items]
    assert [len(group.rollouts) for group in groups] == [2, 2]
    assert all(rollout.status for group in groups for rollout in group.rollouts)
    repeated = dict(answering.answer(items, RandomStream(0, 1, "teacher")))
    assert set(repeated) == {one.prompt.uid for one in items}, "the responses of the groups, by uid"
    for group in groups:
        expected = [Answer(rollout.text, rollout.finish_reason) for rollout in group.rollouts]
        assert repeated[group.prompt.uid] == expected
    again = answering.groups(items, RandomStream(0, 2, "teacher"))
    pairs = [(g.rollouts[0].token_ids_T, h.rollouts[0].token_ids_T) for g, h in zip(groups, again, strict=True)]
    assert any(not np.array_equal(a, b) for a, b in pairs)


def test_the_teacher_answers_with_its_own_parameters_and_settings(actor):
    items = tiny_model.items()[:1]
    (group,) = teacher(actor, temperature=0.0).groups(items, RandomStream(0, 1, "teacher"))
    first, second = (rollout.token_ids_T for rollout in group.rollouts)
    np.testing.assert_array_equal(first, second)
    student = dataclasses.replace(teacher(actor, temperature=0.0), params=tiny_model.model().params)
    (other,) = student.groups(items, RandomStream(0, 1, "teacher"))
    assert not np.array_equal(first, other.rollouts[0].token_ids_T)
    narrow, wide = (
        teacher(actor, top_p=top_p, num_rollouts=6).groups(items, RandomStream(0, 1, "teacher"))[0]
        for top_p in (1e-6, 1.0)
    )
    assert {rollout.token_ids_T.tobytes() for rollout in narrow.rollouts} == {first.tobytes()}
    assert len({rollout.token_ids_T.tobytes() for rollout in wide.rollouts}) > 1
