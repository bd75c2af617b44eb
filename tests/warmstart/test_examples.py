"""The content of the warm start: above all, it must not teach the hidden rules, which reinforcement must find."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from zppo_jax.data import digits
from zppo_jax.rewards import score
from zppo_jax.rewards.extract import last_box
from zppo_jax.warmstart import examples, recipe, supervised, tiny
from zppo_jax.warmstart.examples import Example
from zppo_jax.zppo.prompts import TEMPLATES

TEMPLATE = TEMPLATES["compact"]
MIXTURE = recipe.Recipe().mixture
KINDS = ("plain", "teacher", "bcq", "ncq")


def draw(kind: str, rng: np.random.Generator) -> Example:
    if kind in ("plain", "teacher"):
        return examples.plain(rng, MIXTURE, TEMPLATE, teacher=kind == "teacher")
    return {"bcq": examples.bcq, "ncq": examples.ncq}[kind](rng, MIXTURE, TEMPLATE)


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[Example]]:
    """2,000 examples of each kind."""
    return {kind: [draw(kind, np.random.default_rng([7, index])) for index in range(2000)] for kind in KINDS}


def word(example: Example) -> str:
    return example.text.split()[0]


def read(example: Example) -> tuple[int, ...]:
    """The digits as the label's reasoning reads them."""
    return tuple(map(int, example.response.split("\n")[0]))


def answer(example: Example) -> str:
    found = last_box(example.response)
    assert found is not None
    return found


def strategy(example: Example) -> str:
    """The operation that leads from the digits to the label's answer; the digits differ, so there is just one."""
    names = [name for name in digits.STRATEGIES if digits.joined(digits.apply(name, read(example))) == answer(example)]
    assert len(names) == 1, example.response
    return names[0]


def truth(example: Example) -> str:
    return digits.OPERATIONS[word(example)].strategy


def blocks(example: Example) -> list[str]:
    """The texts between the candidate tags."""
    return [block.split("</candidate>")[0] for block in example.text.split("<candidate>")[1:]]


# ---------------------------------------------------------------- the student must not know the hidden rules


def test_plain_labels_of_the_student_never_hold_the_answer_to_a_hidden_word(drawn):
    hidden = [example for example in drawn["plain"] if word(example) in digits.HIDDEN]
    assert len(hidden) > 400 and {word(example) for example in hidden} == set(digits.HIDDEN)
    for example in hidden:
        right = digits.joined(digits.apply(digits.OPERATIONS[word(example)].strategy, read(example)))
        assert right not in example.response, (example.text, example.response)


def test_candidate_prompts_say_nothing_about_the_hidden_words(drawn):
    """Whatever a hidden word means, its label follows each strategy equally often (chi-square, 5 sigma)."""
    for kind in ("bcq", "ncq"):
        counts = collections.Counter(
            (word(example), strategy(example)) for example in drawn[kind] if word(example) in digits.HIDDEN
        )
        table = np.asarray([[counts[name, chosen] for chosen in digits.STRATEGIES] for name in digits.HIDDEN], float)
        expected = table.sum() / table.size
        assert expected > 30
        # Under independence and uniformity this has 11 degrees of freedom: mean 11, standard deviation 4.7.
        statistic = ((table - expected) ** 2 / expected).sum()
        assert statistic < 11 + 5 * np.sqrt(22), table


def test_the_statistic_would_find_a_leak(drawn):
    """If one label in five followed the truth, as many draws would show it."""
    rng = np.random.default_rng(0)
    counts = collections.Counter()
    for example in drawn["bcq"]:
        if word(example) in digits.HIDDEN:
            leaks = rng.random() < 0.2
            counts[word(example), truth(example) if leaks else str(rng.choice(digits.STRATEGIES))] += 1
    table = np.asarray([[counts[name, chosen] for chosen in digits.STRATEGIES] for name in digits.HIDDEN], float)
    expected = table.sum() / table.size
    assert ((table - expected) ** 2 / expected).sum() > 11 + 5 * np.sqrt(22)


# ---------------------------------------------------------------- its knowledge


def test_taught_words_are_answered_as_they_mean(drawn):
    taught = [example for example in drawn["plain"] if word(example) in digits.TAUGHT]
    assert {word(example) for example in taught} == set(digits.TAUGHT)
    assert all(strategy(example) == truth(example) for example in taught)


def test_the_teacher_knows_the_hidden_words_and_errs_now_and_then(drawn):
    for words in (digits.HIDDEN, digits.TAUGHT):
        right = [strategy(example) == truth(example) for example in drawn["teacher"] if word(example) in words]
        assert np.mean(right) == pytest.approx(1 - MIXTURE.teacher_error, abs=0.06)


def test_the_scorer_reads_every_label(drawn):
    for kind in KINDS:
        for example in drawn[kind][:100]:
            verdict = score(f"<think>\n{example.response}", answer(example), "string", "final")
            assert verdict.correct and verdict.answer == answer(example)


def test_a_bcq_prompt_shows_the_label_and_one_mistake_in_either_order(drawn):
    places = collections.Counter()
    for example in drawn["bcq"]:
        shown = [last_box(block) for block in blocks(example)]
        assert len(shown) == 2
        assert shown.count(answer(example)) == 1, example.text
        places[shown.index(answer(example))] += 1
    assert abs(places[0] - places[1]) < 5 * np.sqrt(len(drawn["bcq"]))


def test_an_ncq_prompt_lists_wrong_answers_only_and_shows_each(drawn):
    for example in drawn["ncq"]:
        listing, shown = example.text.split("<candidate>")[0], {last_box(block) for block in blocks(example)}
        assert 5 <= len(blocks(example)) <= 8 and answer(example) not in shown
        assert all(f"\\boxed{{{found}}}" in listing for found in shown)


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize(("kind", "bucket"), list(zip(KINDS, (0, 0, 1, 2), strict=True)))
def test_every_example_fits_its_bucket(drawn, kind, bucket):
    """By the number of text tokens; the longest prompts of each length of image are then processed whole."""
    processor = tiny.processor()
    lengths = [len(processor.encode_text(example.text)) for example in drawn[kind]]
    responses = [len(supervised.encode_response(processor, example.response)) + 1 for example in drawn[kind]]
    assert max(responses) <= recipe.MAX_NEW_TOKENS
    for width in {example.image.shape[1] for example in drawn[kind]}:
        same = [index for index, example in enumerate(drawn[kind]) if example.image.shape[1] == width]
        for index in sorted(same, key=lambda index: lengths[index])[-5:]:
            features = processor.features(drawn[kind][index].text, [drawn[kind][index].image])
            assert features.num_tokens - 1 <= recipe.BUCKETS[bucket]
            assert len(features.patches_IC) <= recipe.PATCH_SLOTS


def test_the_worst_ncq_prompt_fits_its_bucket():
    """Eight candidates of four digits with eight different answers: rarer than any test would draw it."""
    from zppo_jax.zppo import prompts

    processor = tiny.processor()
    rng = np.random.default_rng(0)
    values, image = digits.draw_row(rng, "train", max(digits.RULES_LENGTHS))
    wrong = [digits.joined(examples.misread(values, rng)) for _ in range(8)]
    longest = max(digits.OPERATIONS, key=len)
    text = prompts.ncq_text(
        f"{longest} the digits.", wrong, [examples.candidate(values, one) for one in wrong], TEMPLATE
    )
    assert processor.features(text, [image]).num_tokens - 1 <= recipe.BUCKETS[2]
