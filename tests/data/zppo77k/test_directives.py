"""Directives on how to answer go; the question, its options and what it says about the answer stay."""

import time

import pytest

from zppo_jax.data.zppo77k.directives import FAMILIES, cleaned, count_placeholders

OPTIONS = "Which one is it?\nA. cat\nB. dog"


@pytest.mark.parametrize(
    ("family", "directive"),
    [
        ("letter", "Answer with the option's letter from the given choices directly."),
        ("letter", "Answer with the letter."),
        ("letter", "Please answer directly with only the letter of the correct option."),
        ("letter", "Respond with only the letter (A, B, C, or D)"),
        ("letter", "Answer with the option letter from the given choices directly"),
        ("letter", "Only give the best option."),
        ("letter", "Please directly answer the question and provide the correct option letter, e.g., A, B, C, D."),
        ("word", "Answer the question using a single word or phrase."),
        ("word", "Please answer the question with a single word or number."),
        ("word", "Give a short answer."),
        ("boxed", r"Put your final answer in \boxed{}."),
        ("boxed", r"Please think step by step and put your final answer within \boxed{}."),
        ("boxed", "Output the thinking process in <think> </think> and final answer in <answer> </answer> tags."),
        ("reason", "Please reason carefully before giving the final answer."),
        ("reason", "Provide a detailed step-by-step explanation before stating the final answer."),
        ("reason", "First, think through the problem, then give the final answer."),
    ],
)
def test_a_trailing_directive_goes(family, directive):
    for separator in (" ", "\n", "\n\n"):
        assert cleaned(f"<image>\n{OPTIONS}{separator}{directive}", (family,)) == OPTIONS
    assert cleaned(f"{OPTIONS}\n{directive}", ()) == f"{OPTIONS}\n{directive}", "not of this source"


@pytest.mark.parametrize(
    ("family", "directive"),
    [
        (
            "hint",
            "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.",
        ),
        ("letter", "Answer with the option's letter from the given choices directly."),
        ("boxed", r"Put your final answer in \boxed{}."),
    ],
)
def test_a_leading_directive_and_the_label_go(family, directive):
    assert cleaned(f"{directive}\nQuestion: {OPTIONS}", (family,)) in (OPTIONS, f"Question: {OPTIONS}")
    assert cleaned(f"Question: {OPTIONS}", (family,)) == OPTIONS


@pytest.mark.parametrize(
    "question",
    [
        "Hint: Please answer the question requiring an integer answer and provide the final value, e.g., 1, 2, 3, at "
        "the end.\nHow many?",
        "How long is AB? Round to two decimal places.",
        "Give the answer in centimetres.",
        "Write the equation of the line. Answer in the form y = mx + b.",
        "What does the sign say? Answer in French.",
        "Which letter comes first? Answer with the letter on the left.",
        "What should you do?\nA. think before giving an answer\nB. Answer with the letter.",
        "Explain which solution has 3 moles.",
        "Does he think before he writes? Show your answer as a fraction of 7.",
        "Answer with the letter.",
    ],
)
def test_what_the_answer_is_stays(question):
    assert cleaned(question, FAMILIES) == question


def test_placeholders_are_counted_and_taken_out():
    assert count_placeholders("<image>\n<image> and <video>") == 3
    assert cleaned("See <image> and  say x.", ()) == "See and say x."
    assert cleaned("<image>", ()) == ""


def test_several_directives_go_and_time_is_linear():
    question = f"{OPTIONS} Answer with the letter. Please reason step by step. Put your final answer in \\boxed{{}}."
    assert cleaned(question, ("letter", "boxed")) == OPTIONS
    start = time.process_time()
    cleaned("answer the question with <think> " * 30_000, FAMILIES)
    cleaned(" " * 1_000_000 + "x", FAMILIES)
    assert time.process_time() - start < 2
