"""Images are encoded once for a question: its plain, BCQ and NCQ prompts share the features."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_model
from zppo_jax.keys import RandomStream
from zppo_jax.rollout.engine import Engine
from zppo_jax.rollout.kept import Kept, VisionFeatures
from zppo_jax.rollout.requests import Request, Sample
from zppo_jax.rollout.sample import sample
from zppo_jax.rollout.session import Session

KINDS = {"plain": "", "bcq": "1", "ncq": "2"}


def engine(budget: int = 2**30) -> Engine:
    """An engine with separate features; two prompts per call."""
    return dataclasses.replace(tiny_model.engine(), kept=Kept(features=VisionFeatures(budget)))


def request(name: str, kind: str = "plain", key: str | None = None, num_images: int = 1) -> Request:
    """The question's image is that of its name, the text of the prompt depends on the kind."""
    asked = tiny_model.question(name, num_images)
    features = tiny_model.processor().features(KINDS[kind] + name, asked.images)
    return Request(f"1/{name}/{kind}", features, 2, draw=RandomStream(3), vision_key=key)


def answers(one: Engine, requests: list[Request], params: Any = None) -> list[list[Sample]]:
    return sample(one, params or tiny_model.model().params, requests)


def same(ours: list[list[Sample]], theirs: list[list[Sample]]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        for mine, its in zip(one, other, strict=True):
            np.testing.assert_array_equal(mine.token_ids_T, its.token_ids_T)
            np.testing.assert_allclose(mine.logprobs_T, its.logprobs_T, atol=1e-5)


def differ(ours: list[list[Sample]], theirs: list[list[Sample]]) -> bool:
    pairs = [pair for groups in zip(ours, theirs, strict=True) for pair in zip(*groups, strict=True)]
    return all(
        len(a.logprobs_T) != len(b.logprobs_T) or np.abs(a.logprobs_T - b.logprobs_T).max() > 1e-4 for a, b in pairs
    )


def counts(one: Engine) -> tuple[int, int]:
    return one.kept.features.encoded, one.kept.features.reused


def changed() -> Any:
    """Parameters with another vision tower."""
    params = tiny_model.model().params
    return params | {"vision": jax.tree.map(lambda x: 1.1 * x, params["vision"])}


def test_reformulated_prompts_reuse_the_features_of_the_question():
    """In later calls, in the other order and with a prompt without images; the answers are those without reuse."""
    one, names = engine(), ("b", "d")
    plain = [request(name, "plain", name) for name in names]
    first = answers(one, plain)
    assert counts(one) == (1, 0)
    bcq = [request(name, "bcq", name) for name in reversed(names)]
    ncq = [request("b", "ncq", "b"), request("d", "ncq", "d")]
    second, third = answers(one, bcq), answers(one, ncq)
    assert counts(one) == (1, 2)
    for ours, asked in ((first, plain), (second, bcq), (third, ncq)):
        alone = engine()
        same(ours, answers(alone, [dataclasses.replace(each, vision_key=None) for each in asked]))
        assert counts(alone) == (1, 0)


def test_the_features_are_those_of_the_key():
    """The reused features decide: a prompt with another question's key gets answers about that question's image."""
    one = engine()
    answers(one, [request("b", "plain", "b"), request("d", "plain", "d")])
    right, wrong = request("b", "bcq", "b"), request("b", "bcq", "d")
    right_answers, wrong_answers = answers(one, [right]), answers(one, [wrong])
    assert counts(one) == (1, 2) and differ(right_answers, wrong_answers)
    as_d = dataclasses.replace(right.features, patches=request("d").features.patches_IC)
    same(wrong_answers, answers(engine(), [dataclasses.replace(right, features=as_d)]))


def test_a_prompt_without_key_is_encoded_again():
    one = engine()
    for _ in range(2):
        answers(one, [request("b")])
    assert counts(one) == (2, 0)


def test_new_images_beside_known_ones_are_encoded_and_then_known():
    one = engine()
    answers(one, [request("b", "plain", "b")])
    both = answers(one, [request("b", "bcq", "b"), request("e", "bcq", "e")])
    assert counts(one) == (2, 0)
    again = answers(one, [request("e", "bcq", "e"), request("b", "bcq", "b")])
    assert counts(one) == (2, 1)
    same(again, both[::-1])


def test_text_prompts_take_part_without_images():
    """A bucket with both: the text prompt neither needs features nor prevents the reuse."""
    one, text = engine(), request("A" * 4, "ncq", num_images=0)
    image = request("b", "plain", "b")
    shapes = tiny_model.SHAPES
    assert shapes.bucket_of(text.features) == shapes.bucket_of(image.features), "they share a call"
    first = answers(one, [image, text])
    assert counts(one) == (1, 0)
    second = answers(one, [text, image])
    assert counts(one) == (1, 1)
    same(second, first[::-1])
    same([second[0]], answers(engine(), [text]))


def test_other_parameters_of_the_tower_forget_everything():
    one, asked = engine(), [request("b", "plain", "b")]
    before = answers(one, asked)
    after = answers(one, asked, changed())
    assert counts(one) == (2, 0) and differ(before, after)
    same(after, answers(engine(), asked, changed()))
    same(answers(one, asked), before)
    assert counts(one) == (3, 0)


def test_other_parameters_of_the_language_model_alone_keep_the_features():
    """A frozen tower is the same object after an update: its features are still right."""
    params = tiny_model.model().params
    trained = params | {"text": jax.tree.map(lambda x: 1.02 * x, params["text"])}
    one, asked = engine(), [request("b", "plain", "b")]
    before, after = answers(one, asked), answers(one, asked, trained)
    assert counts(one) == (1, 1) and differ(before, after)
    same(after, answers(engine(), asked, trained))


def test_a_budget_of_nothing_keeps_nothing():
    one, asked = engine(budget=0), [request("b", "plain", "b")]
    first, second = answers(one, asked), answers(one, asked)
    assert counts(one) == (2, 0)
    same(first, second)


@pytest.mark.parametrize("held", [1, 2])
def test_the_budget_bounds_what_is_kept(held):
    """Room for the features of some calls: questions beyond it are encoded each time, those within it once."""
    shape = jax.eval_shape(lambda: jnp.zeros((2, tiny_model.SHAPES.patch_slots // 4, 64), jnp.float32))
    one = engine(budget=held * shape.size * 4)
    for _ in range(2):
        for name in ("b", "d", "e"):
            answers(one, [request(name, "plain", name)])
    assert counts(one) == (3 + 3 - held, held)


def test_one_encoding_for_all_samples_and_slots():
    """A question with more samples than there are slots is encoded once, however often its rollouts are admitted."""
    one = Session(engine(), tiny_model.model().params)
    one.submit(dataclasses.replace(request("b"), num_samples=20))
    while one.busy:
        one.advance()
    assert counts(one.engine) == (1, 0) and one.counters.prompts == 1 and one.counters.finished == 20


def test_prompts_of_text_alone_do_not_pay_for_the_tower():
    """They run it once, for an array of the right shape; after that never, even if the parameters change."""
    one, asked = engine(), [request("A", num_images=0)]
    answers(one, asked)
    first = counts(one)
    for params in (tiny_model.model().params, changed(), tiny_model.model().params):
        answers(one, asked * 5, params)
    assert first == counts(one) == (1, 0)


def test_an_empty_key_is_no_key():
    """A question without an id must not pass for one without images."""
    one = engine()
    ours = answers(one, [request("b", "plain", ""), request("d", "plain", "")])
    same(ours, answers(engine(), [request("b"), request("d")]))
    assert differ(ours, answers(engine(), [request("d"), request("b")]))
