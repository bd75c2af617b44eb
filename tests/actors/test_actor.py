"""The actor on the tiny model: texts match the tokens, verdicts belong to their rollouts."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest

from tests import tiny_model
from zppo_jax.actors.actor import Actor
from zppo_jax.data.processing import PromptProcessing
from zppo_jax.keys import RandomStream
from zppo_jax.rewards import ScoringPool, score
from zppo_jax.rewards.scorer import Scorer
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.requests import Sample


@pytest.fixture(scope="module")
def actor():
    with ScoringPool(1, 10.0) as pool:
        yield Actor(tiny_model.engine(), tiny_model.processor(), Scorer(pool, "final"))


def answer(actor, items, num_samples=3, **identity):
    identity = {"seed": 0, "step": 1, "purpose": "student"} | identity
    return actor.answer(tiny_model.model().params, items, num_samples, Sampling(), RandomStream(**identity))


def spoken(text: str) -> Sample:
    """A sample that says `text` and stops."""
    processor = tiny_model.processor()
    ids = [*processor.encode_text(text), processor.stop_ids[0]]
    logprobs = np.full(len(ids), -1.0, np.float32)
    return Sample(np.asarray(ids, np.int32), logprobs, "stop", logprobs)


def test_groups_hold_the_engines_samples_in_order(actor):
    items = tiny_model.items()[:4]
    groups = answer(actor, items)
    for group, of, expected in zip(groups, items, tiny_model.groups(), strict=False):
        assert group.prompt is of.prompt and group.features is of.features
        for rollout, sample in zip(group.rollouts, expected.rollouts, strict=True):
            np.testing.assert_array_equal(rollout.token_ids_T, sample.token_ids_T)
            np.testing.assert_allclose(rollout.logprobs_T, sample.logprobs_T, atol=1e-5)
            assert rollout.finish_reason == sample.finish_reason
            assert rollout.text == "<think>\n" + tiny_model.processor().decode(rollout.token_ids_T)


def test_the_identity_reaches_the_engine(actor):
    items = tiny_model.items()[:1]
    texts = [answer(actor, items, **identity)[0].rollouts[0].text for identity in ({}, {"seed": 9}, {"step": 9})]
    texts.append(answer(actor, items, purpose="teacher")[0].rollouts[0].text)
    assert len(set(texts)) == 4


class Script:
    """An engine with scripted samples, by uid."""

    def __init__(self, lines):
        self.lines = lines

    def stream(self, params, requests):
        """Yields the last sample of each group first, one group after the other."""
        for index, request in enumerate(requests):
            texts = list(enumerate(self.lines[request.uid]))
            yield []
            yield [(index, number, spoken(text)) for number, text in reversed(texts)]


def test_each_verdict_belongs_to_its_rollout(actor):
    """Right, wrong and unparsable answers to two questions, whose rollouts are scored together."""
    lines = {
        "1/a/plain": ["so </think> \\boxed{7}", "\\boxed{7} </think> who knows", "so </think> \\boxed{8}"],
        "1/b/plain": ["</think> \\boxed{9}", "</think> \\boxed{7.0}", "</think> nothing"],
    }
    scripted = Actor(Script(lines), actor.processor, actor.scorer)  # type: ignore[arg-type]
    groups = answer(scripted, tiny_model.items()[:2])
    assert [[r.correct for r in g.rollouts] for g in groups] == [[True, False, False], [False, True, False]]
    assert [[r.answer for r in g.rollouts] for g in groups] == [["7", None, "8"], ["9", "7.0", None]]
    for group in groups:
        np.testing.assert_array_equal(group.rewards_G, [r.correct for r in group.rollouts])
        for rollout in group.rollouts:
            verdict = score(rollout.text, group.prompt.question.answer, "math", "final")
            assert (rollout.correct, rollout.answer) == (verdict.correct, verdict.answer)
            assert rollout.status == str(verdict.status)


def test_the_region_is_the_scorers(actor):
    lines = {"1/a/plain": ["\\boxed{7} </think> who knows"] * 2}
    scorer = Scorer(actor.scorer.pool, "anywhere")
    anywhere = Actor(Script(lines), actor.processor, scorer)  # type: ignore[arg-type]
    assert all(rollout.correct for rollout in answer(anywhere, tiny_model.items()[:1], 2)[0].rollouts)


def test_responses_are_scored_while_others_are_sampled(actor):
    """The engine goes on only after the samples that it has given are scored."""
    scored = threading.Event()

    class Counting:
        def score(self, texts, questions):
            scored.set()
            return actor.scorer.score(texts, questions)

    class Waiting(Script):
        def stream(self, params, requests):
            yield [(0, 1, spoken("</think> \\boxed{7}"))]
            assert scored.wait(30)
            yield [(0, 0, spoken("</think> \\boxed{8}"))]

    beside = Actor(Waiting({}), actor.processor, Counting())  # type: ignore[arg-type]
    (group,) = answer(beside, tiny_model.items()[:1], 2)
    assert [rollout.answer for rollout in group.rollouts] == ["8", "7"]


def test_the_options_of_a_question_reach_its_scorer(actor):
    """Two questions with the same gold: an answer near enough for one is wrong for the other."""
    lines = {"1/a/plain": ["</think> \\boxed{7.3}"], "1/b/plain": ["</think> \\boxed{7.3}"]}
    near, exact = tiny_model.items()[:2]
    question = dataclasses.replace(near.prompt.question, answer_type="numeric", options={"tolerance": 0.5})
    near = dataclasses.replace(near, prompt=dataclasses.replace(near.prompt, question=question))
    question = dataclasses.replace(exact.prompt.question, answer_type="numeric")
    exact = dataclasses.replace(exact, prompt=dataclasses.replace(exact.prompt, question=question))
    scripted = Actor(Script(lines), actor.processor, actor.scorer)  # type: ignore[arg-type]
    groups = answer(scripted, [near, exact], 1)
    assert [group.rollouts[0].correct for group in groups] == [True, False]


def test_what_is_scored_begins_with_the_opening(actor):
    """The model continues the opening, so it is part of the response; here it ends thinking and begins a box."""
    lines = {"1/a/plain": ["7}", "8}"]}
    item = tiny_model.items()[0]
    item = dataclasses.replace(item, prompt=dataclasses.replace(item.prompt, opening="so </think> \\boxed{"))
    scripted = Actor(Script(lines), actor.processor, actor.scorer)  # type: ignore[arg-type]
    (group,) = answer(scripted, [item], 2)
    assert [rollout.text for rollout in group.rollouts] == [f"<think>\nso </think> \\boxed{{{n}}}" for n in (7, 8)]
    assert [rollout.correct for rollout in group.rollouts] == [True, False]
    assert [actor.processor.decode(rollout.token_ids_T) for rollout in group.rollouts] == ["7}", "8}"], "sampled alone"


def test_the_engine_continues_the_opening(actor):
    """The opening's tokens end the prompt that is sampled from: the model answers differently than without it."""
    (plain, *_), process = tiny_model.items(), PromptProcessing(actor.processor, tiny_model.TEMPLATE)
    opened = process.item(dataclasses.replace(plain.prompt, opening="ab"))
    assert opened.features.num_tokens > plain.features.num_tokens
    said = [answer(actor, [item])[0] for item in (plain, opened, process.item(plain.prompt))]
    tokens = [[rollout.token_ids_T.tolist() for rollout in group.rollouts] for group in said]
    assert tokens[0] == tokens[2] != tokens[1]
    assert all(rollout.text.startswith("<think>\nab") for rollout in said[1].rollouts)


def test_no_items_no_groups(actor):
    assert answer(actor, []) == []
