"""Golds: unwrapping, lists, inline options, and the answer type of a gold that has none."""

import json
import time

import pytest

from zppo_jax.data.zppo77k.golds import alternatives, choices, decide, first_choice, tagged, unwrapped
from zppo_jax.rewards import check_gold, score


@pytest.mark.parametrize(
    ("written", "gold"),
    [
        ("<think>It is.</think><answer>B</answer>", "B"),
        ("<think>It is.</think>\n\n 7 ", "7"),
        ("<answer> x < 3 ", "x < 3"),
        ("The final answer is: 12.", "12"),
        ("Answer: 3.5", "3.5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1} or \boxed{2}", r"\boxed{1} or \boxed{2}"),
        ("$x^2$", "x^2"),
        ("$1$ and $2$", "$1$ and $2$"),
        ("the answering machine", "the answering machine"),
        ("  plain ", "plain"),
    ],
)
def test_golds_are_unwrapped(written, gold):
    assert unwrapped(written) == gold


def test_the_tag_of_the_original_answer():
    assert tagged("<think>a</think><answer> 5 </answer>") == "5"
    assert tagged("5") is None and tagged(None) is None


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("['red', 'dark red', 'red']", ["red", "dark red"]),
        ("[1, 2.5]", ["1", "2.5"]),
        ("red", ["red"]),
        ("['red'", None),
        ("[]", None),
        ("[['a']]", None),
        ("[__import__('os').getpid()]", None),
        ("[" * 400, None),
        (str(["x"] * 200), None),
    ],
)
def test_lists_are_read_and_never_evaluated(written, kept):
    found = alternatives(written, 512)
    assert (None if found is None else json.loads(found)) == kept


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("Which? A) a cat B) a dog C) a cow", ("a cat", "a dog", "a cow")),
        ("Which?\nA. 3 cm\nB. 4.5 cm\nWrite one.", ("3 cm", "4.5 cm")),
        ("Which? (A) x, (B) y, (C) z", ("x", "y", "z")),
        ("Choices: A: red; B: green", ("red", "green")),
        ("下列哪个？A．红 B．绿", ("红", "绿")),
        ("In A. B. Smith's picture (A) one (B) two (C) three", ("one", "two", "three")),
        ("How far is A from B) and C?", ()),
        ("Point A) only", ()),
        ("Which? A) B) C)", ()),
        ("No options at all.", ()),
    ],
)
def test_inline_options(question, options):
    assert choices(question) == options
    assert (first_choice(question) < len(question)) == bool(options)


@pytest.mark.parametrize(
    ("gold", "options", "decided"),
    [
        ("B", ("x", "y"), "multiple_choice"),
        ("(C)", (), "multiple_choice"),
        ("B. a dog", ("a cat", "a dog"), "multiple_choice"),
        ("A Dog", ("a cat", "a dog"), "multiple_choice"),
        ("A, C", ("x", "y", "z"), "multiple_choice"),
        ("AC", ("x", "y", "z"), "multiple_choice"),
        ("AC", (), "math"),
        ("CA", ("x", "y", "z"), "math"),
        ("12", (), "math"),
        ("12", ("12", "13"), "multiple_choice"),
        ("25 cm", (), "math"),
        (r"\frac{1}{2}", (), "math"),
        (r"x = 3 or x = 4", (), "math"),
        (r"12 \text{ square meters}", (), "math"),
        ("T", (), "math"),
        ("Yes", (), "string"),
        ("No", (), "string"),
        ("acute triangle", (), "string"),
        ("北京", (), "string"),
        ("The force grows because the mass is larger.", (), "free_form"),
        ("It moves to the left and then it slowly comes to rest", (), "free_form"),
        ("The area is 12 and the side is 4", (), "free_form"),
    ],
)
def test_the_type_of_a_gold(gold, options, decided):
    kept, kind, extra = decide(gold, options)
    assert kind == decided
    if kind != "free_form":
        assert check_gold(kept, kind, **extra) is None
        assert score(rf"\boxed{{{kept}}}", kept, kind, "anywhere", **extra).correct


def test_hostile_texts_take_linear_time():
    start = time.process_time()
    for text in ("A) " * 20_000, "<answer>" * 20_000, "The answer is " * 20_000, "(A" * 50_000, "[[" * 50_000):
        assert [choices(text), unwrapped(text), decide(text, ()), alternatives(text, 512)]
    assert time.process_time() - start < 3
