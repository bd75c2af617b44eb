"""The text for a response in a prompt: its summary if that holds its answer, else its end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zppo_jax.rewards import ScoringPool
from zppo_jax.zppo import accept_summary, fallback_summary
from zppo_jax.zppo.summaries import Checked, boxed_answer


@pytest.fixture(scope="module")
def graded():
    """Equality of two answers, as in the reward."""
    with ScoringPool(1, 10.0) as scorer:
        yield lambda answer, found: scorer.score(rf"\boxed{{{found}}}", answer, "math", "anywhere").correct


def accepted(output: str, answer: str | None, graded) -> Checked:
    """Checks a summary with the grader's comparison of the two answers."""
    found = boxed_answer(output)
    return accept_summary(output, answer, graded(answer, found) if answer and found else None)


def last_12(text: str) -> str:
    return text[-12:]


@pytest.mark.parametrize(
    ("response", "answer", "expected"),
    [
        ("<think>\n3 + 4\n</think>\n\n\\boxed{7}", "7", "3 + 4\n\\boxed{7}"),
        ("<think>\n3 + 4\n</think>\n\nIt is \\boxed{7}.", "7", "3 + 4\nIt is \\boxed{7}.\n\\boxed{7}"),
        ("<think>\nno end", None, "no end"),
        ("the answer is 7", "7", "the answer is 7\n\\boxed{7}"),
        ("\\boxed{12} or \\boxed{7}", "7", "\\boxed{12} or \\boxed{7}"),
        ("", "7", "\\boxed{7}"),
        ("< / THINK >x", None, "x"),
        ("", None, ""),
    ],
)
def test_fallback_summary(response: str, answer: str | None, expected: str):
    assert fallback_summary(response, answer, truncate=lambda text: text) == expected


def test_fallback_summary_is_cut_at_the_front_and_keeps_the_whole_box():
    assert fallback_summary("<think>\nabcdefgh\n</think>\n\n\\boxed{7}", "7", last_12) == "gh\n\\boxed{7}"
    assert fallback_summary("x \\boxed{123456789}", "123456789", last_12) == "d{123456789}\n\\boxed{123456789}"


@given(st.text(alphabet="ab\n<>/think {}\\boxed", max_size=60), st.sampled_from([None, "7", "\\frac{1}{2}"]))
def test_fallback_summary_ends_with_the_answer(response: str, answer: str | None):
    text = fallback_summary(response, answer, last_12)
    assert answer is None or text.endswith(f"\\boxed{{{answer}}}")
    assert text == text.strip()
    assert len(text) <= 12 + len(f"\n\\boxed{{{answer}}}")


@pytest.mark.parametrize(
    ("output", "answer", "expected"),
    [
        ("<summary>\nAdd.\n\\boxed{7}\n</summary>", "7", "Add.\n\\boxed{7}"),
        ("Sure: <summary></summary> so <summary>A \\boxed{ 7 }</summary> done", "7", "A \\boxed{7}"),
        ("<summary>\\boxed{8}? \\boxed{\\sqrt{2}}</summary>", "\\sqrt{2}", "\\boxed{8}? \\boxed{\\sqrt{2}}"),
        ("<summary>gave up</summary>", None, "gave up"),
        # Another spelling of the same answer is accepted, and written in the response's spelling.
        ("<summary>A half: \\boxed{\\frac12}</summary>", "\\frac{1}{2}", "A half: \\boxed{\\frac{1}{2}}"),
        ("<summary>A half: \\boxed{0.5}</summary>", "1/2", "A half: \\boxed{1/2}"),
        ("<summary>\\boxed{\\sqrt{8}}.</summary>", "2\\sqrt{2}", "\\boxed{2\\sqrt{2}}."),
        # A box that the response does not have is dropped: Fig 16 orders the compressor to end with one.
        ("<summary>Added, no end.\n\\boxed{7}</summary>", None, "Added, no end."),
        ("<summary>\\boxed{1}: one, \\boxed{\\text{a \\boxed{b}}} two</summary>", None, ": one,  two"),
        ("<summary>Added. \\boxed{7</summary>", None, "Added."),
        ("<summary>a \\\\boxed{y} line break is not a box</summary>", None, "a \\\\boxed{y} line break is not a box"),
        # Nothing may mark a candidate: stray tags are removed.
        ("<summary>a</summary> b <think> \\boxed{7}</summary>", "7", "a b  \\boxed{7}"),
        ("<summary>so \\boxed{5\\ }</summary>", "5", "so \\boxed{5}"),
    ],
)
def test_a_summary_that_holds_the_answer_is_taken(output, answer, expected, graded):
    assert accepted(output, answer, graded) == Checked(expected)


@pytest.mark.parametrize(
    ("output", "answer", "reason"),
    [
        ("<summary>Add. \\boxed{8}</summary>", "7", "other_answer"),
        ("<summary>\\boxed{7} or \\boxed{8}</summary>", "7", "other_answer"),
        ("<summary>Add. 7</summary>", "7", "no_answer"),
        ("<summary>Add. \\boxed{7</summary>", "7", "no_answer"),
        ("<summary>\\boxed{7} so \\boxed{7</summary>", "7", "no_answer"),  # cut in its last box
        ("<summary>Add. \\boxed{7", "7", "no_summary"),  # cut
        ("Add. \\boxed{7}", "7", "no_summary"),
        ("</summary>\\boxed{7}<summary>", "7", "no_summary"),
        ("<summary> </summary>", None, "no_summary"),
        ("<summary>\\boxed{7}</summary>", None, "no_summary"),  # only an invented answer
        ("", "7", "no_summary"),
    ],
)
def test_a_summary_that_cannot_stand_for_its_response_is_refused_with_the_reason(output, answer, reason, graded):
    assert accepted(output, answer, graded) == Checked("", reason)


def test_what_the_scorer_cannot_say_is_a_reason_of_its_own():
    output = "<summary>Add. \\boxed{8}</summary>"
    assert accept_summary(output, "7", None) == Checked("", "undecided")


def test_both_authors_are_treated_alike(graded):
    """The form of the shown text does not reveal its author: a student's response without a box gets a summary too."""
    output = "<summary>Read the digits, then add.\n\\boxed{12}</summary>"
    assert accepted(output, "12", graded).text == "Read the digits, then add.\n\\boxed{12}"
    assert accepted(output, None, graded).text == "Read the digits, then add."
