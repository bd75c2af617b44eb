"""The text that counts as the answer of a response."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zppo_jax.rewards import Status, extract, score
from zppo_jax.rewards.extract import answer_region, extract_answer, last_box

FOUND = [
    (r"\boxed{5}", "5"),
    (r"\boxed{1} then \boxed{2}", "2"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{\left\{ 3 \right.}", r"\left\{ 3 \right."),
    (r"\boxed {7}", "7"),
    (r"\boxed{\boxed{3}+1}", r"\boxed{3}+1"),
    (r"\boxed{1 and \boxed{2}", "2"),
    (r"{ \boxed{4}", "4"),
    (r"} \boxed{4} }", "4"),
    (r"first \\\boxed{6}", "6"),
    (r"\boxed{ 8 }", "8"),
    ("\\boxed{two\nlines}", "two\nlines"),
    (r"\boxed{1} \boxed{\{2\}, {3}} {4", r"\{2\}, {3}"),
    (r"\boxed {\}}", r"\}"),
    (r"\boxed{5} cut off before its brace: \boxed", "5"),
    (r"\boxed{\boxed{3} is opened last and closed", "3"),
    (r"\boxed{\boxed{1}+\boxed{2}}", r"\boxed{1}+\boxed{2}"),
]


@pytest.mark.parametrize(("response", "answer"), FOUND)
def test_the_last_box_is_the_answer(response: str, answer: str) -> None:
    assert extract_answer(response) == (answer, "ok")


def test_a_control_space_at_the_end_of_a_box_goes_whole():
    r"""The backslash alone would escape the brace of the box that the answer is written into."""
    assert extract_answer(r"so \boxed{5\ }") == ("5", Status.OK)
    assert extract_answer(r"so \boxed{a\\ }") == (r"a\\", Status.OK)


@pytest.mark.parametrize(
    ("response", "status"),
    [
        ("5", "no_answer"),
        ("", "no_answer"),
        (r"\boxed{}", "no_answer"),
        (r"\boxed{  }", "no_answer"),
        (r"\\boxed{5}", "no_answer"),
        (r"\boxed5", "no_answer"),
        (r"\boxed{5", "malformed"),
        (r"\boxed{\frac{1}{2}", "malformed"),
        (r"\boxed{5\}", "malformed"),
        (r"\boxed{5} .. \boxed{6", "malformed"),
        (r"\boxed{5} .. \boxed{\frac{6}{7}", "malformed"),
        (r"\boxed{5} .. \boxed{6\}", "malformed"),
        (r"\boxed{\boxed{5} .. \boxed{6", "malformed"),
    ],
)
def test_no_answer_and_a_cut_off_answer_differ(response: str, status: str) -> None:
    assert extract_answer(response) == (None, status)


@pytest.mark.parametrize(
    ("response", "final", "anywhere"),
    [
        (r"<think>\boxed{1}</think>\boxed{2}", "2", "2"),
        (r"<think>\boxed{1}</think>", None, "1"),
        (r"<think>\boxed{1}", None, "1"),
        (r"\boxed{1}</think>", None, "1"),
        (r"<think>a</think>\boxed{1}<think>\boxed{2}</think>\boxed{3}", "3", "3"),
        (r"<think>a</think>\boxed{1}<think>", None, "1"),
        (r"\boxed{1}", "1", "1"),
    ],
)
def test_the_region_decides_where_a_box_counts(response: str, final: str | None, anywhere: str | None) -> None:
    assert extract_answer(response, "final")[0] == final
    assert extract_answer(response, "anywhere")[0] == anywhere
    assert score(response, "1", "integer", region="anywhere").correct == (anywhere == "1")
    assert score(response, "1", "integer").correct == (final == "1")


def test_an_unknown_region_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'end'.*final, anywhere"):
        answer_region("x", "end")


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * 100_000,
        r"\boxed{" * 100_000 + "}" * 100_000,
        "{" * 500_000,
        "\\" * 500_000,
        (r"\boxed" + " " * 50) * 10_000,
        r"\boxed" + " " * 500_000,
        "</think><think>" * 50_000,
    ],
    ids=["open", "nested", "braces", "backslashes", "spaces", "one long space", "tags"],
)
def test_extraction_is_linear_on_hostile_text(text: str) -> None:
    start = time.process_time()
    last_box(text)
    extract_answer(text)
    assert time.process_time() - start < 2.0


PIECES = [
    r"\boxed{",
    r"\boxed {",
    r"\\boxed{",
    "{",
    "}",
    r"\{",
    r"\}",
    "\\",
    "a",
    " ",
    "<think>",
    "</think>",
    "\n",
    "中",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_long_text_is_read_as_short_text(text: str) -> None:
    """The reader of long text with NumPy gives what the one of short text gives."""
    found, last = extract.boxes(text)
    content = extract._last_content(text, found, last)
    read, opened = extract._last_of_long(text)
    assert read == content
    assert (opened < 0) == (last < 0)
