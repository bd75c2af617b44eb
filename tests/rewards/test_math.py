"""Type "math": the false positives and negatives of a naive use of math-verify, and hostile expressions."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zppo_jax.rewards import ANSWER_TYPES, Status, Verdict, score

EQUAL = [
    ("1/2", "0.5"),
    (r"x\%", "x"),
    (r"\frac12", "0.5"),
    (r"\dfrac{1}{2}", r"\frac{1}{2}"),
    (r"-\frac{1}{3}", r"\frac{-1}{3}"),
    ("½", "0.5"),
    ("1.5e3", "1500"),
    (r"1.5\times10^{3}", "1500"),
    ("１２", "12"),
    ("1,000", "1000"),
    ("1{,}000", "1000"),
    ("0.333333", "1/3"),
    (r"50\%", "50"),
    ("50%", "0.5"),
    (r"30^\circ", "30"),
    ("30°", r"30^{\circ}"),
    (r"30^\circ", r"\frac{\pi}{6}"),
    (r"\sin 30^\circ", r"\frac12"),
    (r"30^\circ, 60^\circ", "30, 60"),
    ("(B)", "B"),
    (r"\text{B}", "B"),
    ("b", "B"),
    ("J", "J"),
    (r"\text{yes}", "Yes"),
    ("x=5", "5"),
    ("5", "x=5"),
    ("2π", r"2\pi"),
    ("50 mm", "5 cm"),
    (r"5\text{ cm}", "5"),
    (r"5\sqrt{2}\text{ cm}", r"5\sqrt{2}"),
    (r"\$5", "5"),
    ("$\\frac{3}{4}$", "0.75"),
    (r"\sqrt{12}", r"2\sqrt3"),
    (r"\frac{\sqrt2}{2}", r"\frac{1}{\sqrt{2}}"),
    ("1.41421356", r"\sqrt{2}"),
    ("3:4", "3/4"),
    ("(x+1)^2", "x^2+2x+1"),
    ("b+a", "a+b"),
    (r"\{2,1\}", r"\{1,2\}"),
    ("x^2", "x²"),
    (r"\ln 2", r"\log_e 2"),
    ("2004!/2003!", "2004"),
    ("x>2", r"(2,\infty)"),
    (r"(-\infty,2)\cup(3,\infty)", r"x<2 \text{ or } x>3"),
    ("[-1, 1]", r"-1\le x\le 1"),
    (r"x = 1 \text{ or } x = 2", "x=2,x=1"),
    (r"1-\frac{1}{e}", "1-e^{-1}"),
    ("y=2x+1", "y = 1+2x"),
    (r"120_3", "120_{3}"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&\frac{8}{2}\end{pmatrix}"),
    (r"(\sqrt2+\sqrt3)^2-5-2\sqrt6", "0"),
]

DIFFERENT = [
    ("5 m", "5 cm"),
    (r"5\text{ m}", r"5\text{ cm}"),
    (r"5\sqrt{2}\text{ m}", r"5\sqrt{2}\text{ cm}"),
    ("1/2^99", "1/2^98"),
    (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
    ("1/2004!", "1/2006!"),
    ("1-1/e", "1+1/e"),
    (r"x+\frac{1}{2^{99}}", "x"),
    ("1/2^{99}", "0"),
    ("act", "cat"),
    ("No", "on"),
    ("50", "5"),
    ("2x", "2"),
    ("5e", "5"),
    ("5x", "5"),
    ("-2", "2"),
    ("1 2", "12"),
    ("x²", "x2"),
    ("5½", "51/2"),
    ("(1,2)", "[1,2]"),
    (r"\{1,2\}", r"\{1,3\}"),
    ("(2,1)", "(1,2)"),
    ("x=5", "x=6"),
    ("y=5", "x=5"),
    ("120_3", "120_4"),
    (r"\{\frac{1}{2^{99}}\}", r"\{\frac{1}{2^{98}}\}"),
    ("3.1416", r"\pi"),
    ("0.33", "1/3"),
    ("5 or 6", "5"),
    ("5 is wrong", "5"),
    ("__import__('os').system('true')", "5"),
    ("x>2", r"(3,\infty)"),
    ("2x+1=0", "3x+1=0"),
    (r"\frac{1414213562}{1000000000}", r"\sqrt{2}"),
    *(RETRIED := [(r"\frac{\pi}{6}^\circ", r"\pi/6"), (r"50\%x", "50x"), (r"\ln(3x^\circ)+\pi", r"\pi+\ln(3x)")]),
]


@pytest.mark.parametrize(("answer", "gold"), EQUAL)
def test_equal_answers_count(answer: str, gold: str) -> None:
    assert score(rf"<think>a</think> \boxed{{{answer}}}", gold) == Verdict(True, "ok", answer)


@pytest.mark.parametrize(("answer", "gold"), DIFFERENT + [(gold, answer) for answer, gold in DIFFERENT[:12]])
def test_different_answers_do_not_count(answer: str, gold: str) -> None:
    assert not score(rf"<think>a</think> \boxed{{{answer}}}", gold).correct


@pytest.mark.parametrize(("answer", "gold"), RETRIED)
def test_the_papers_grader_tries_again_without_degree_and_percent_signs(answer: str, gold: str) -> None:
    """App. D.1: only in its own region, because it rewards wrong answers."""
    assert score(rf"\boxed{{{answer}}}", gold, region="anywhere") == Verdict(True, "ok", answer)
    assert not score(rf"\boxed{{{answer}+1}}", gold, region="anywhere").correct


def test_the_second_grading_serves_every_type() -> None:
    for answer, gold, kind in (("50%", "50", "string"), ("30°", "30", "anls"), ("50%", ["50", "x"], "list_any")):
        assert score(rf"\boxed{{{answer}}}", gold, kind, region="anywhere").correct
    assert not score(r"\boxed{50%}", "50", "string").correct


def test_a_letter_followed_by_words_is_no_choice() -> None:
    assert score(r"\boxed{A cat}", "A") == Verdict(False, "malformed", "A cat")


BOMBS = {
    "tower": ("10^{10^{10^{10}}}", "malformed"),
    "tower of small numbers": ("2^{2^{2^{2^{2}}}}", "malformed"),
    "short tower": ("10^{10^{10}}", "malformed"),
    "tower in braces": ("{" * 60 + "2^{2}" + "}" * 60, "malformed"),
    "factorial": ("10000000!", "malformed"),
    "factorial of a factorial": ("(9999!)!", None),
    "long sum": (r"\sum_{n=1}^{1000000000} \frac{1}{n^3+n}", "malformed"),
    "parentheses": ("(" * 20_000 + "1" + ")" * 20_000, "too_long"),
    "some parentheses": ("(" * 200 + "1" + ")" * 200, "malformed"),
    "list": (",".join(["1"] * 20_000), "too_long"),
    "fractions": (r"\frac{1}{" * 300 + "1" + "}" * 300, "too_long"),
    "some fractions": (r"\frac{1}{" * 33 + "1" + "}" * 33, "malformed"),
    "digits": ("9" * 100 + "x", "malformed"),
    "power": ("(x+y+z+1)^{400}", "timeout"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_comes_back_within_seconds_from_any_thread(name: str) -> None:
    answer, status = BOMBS[name]
    verdicts: list[Verdict] = []
    start = time.monotonic()
    thread = threading.Thread(target=lambda: verdicts.append(score(rf"\boxed{{{answer}}}", "x+y")), daemon=True)
    thread.start()
    thread.join(timeout=15)
    assert verdicts, f"no verdict within {time.monotonic() - start:.0f} seconds"
    assert not verdicts[0].correct
    assert status is None or verdicts[0].status == status


HOSTILE = st.one_of(
    st.text(max_size=200),
    st.text(alphabet=r"\{}()[]^_!%$,.=+-*/<> 0123456789abcdefrtx", max_size=60),
    st.lists(
        st.sampled_from([r"\frac", r"\sqrt", r"\text{", "}", "{", "^", "1e", "½", "²", "NaN", "°", "%", "[", "]"])
    ).map("".join),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=HOSTILE, gold=st.sampled_from(["5", "B", "[0,0,9,9]", "a, b"]), answer_type=st.sampled_from(ANSWER_TYPES))
def test_arbitrary_text_always_gives_a_verdict(text: str, gold: str, answer_type: str) -> None:
    for response in (text, rf"<think>{text}</think>\boxed{{{text}}}"):
        verdict = score(response, gold, answer_type)
        assert isinstance(verdict, Verdict)
        assert verdict.status in set(Status)
        assert verdict.correct in (True, False)
