r"""Exact arithmetic for answers: its decisions are true and equal the worker's; it leaves the rest undecided."""

from __future__ import annotations

import math
import time

import pytest
import sympy
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from benchmarks import scoring
from zppo_jax.rewards import Verdict, exact, expression, gates, surds, worker
from zppo_jax.rewards.grade import grade

EQUAL = [
    (r"\sqrt{12}", r"2\sqrt3"),
    (r"\frac{\sqrt2}{2}", r"\frac{1}{\sqrt{2}}"),
    (r"\frac{1}{1+\sqrt{2}}", r"\sqrt{2}-1"),
    (r"\frac{4\pi}{2}", r"2\pi"),
    (r"(\sqrt2+\sqrt3)^2-5-2\sqrt6", "0"),
    ("(x+1)^2", "x^2+2x+1"),
    ("a b", "ba"),
    ("0.5x", r"\frac{x}{2}"),
    ("e^{-1}", r"\frac{1}{e}"),
    (r"\{2,\sqrt{3}\}", r"\{\sqrt3, 2\}"),
    (r"(\frac{4}{2},-3)", "(2, -3)"),
    (r"\{12,345\}", r"\{345, \frac{24}{2}\}"),
    ("y=2x+1", "y=1+2x"),
    ("A=\\sqrt{8}", r"2\sqrt{2}"),
    (r"x\ge \sqrt{2}", r"[\sqrt{2},\infty)"),
    (r"-1\le x<\frac{6}{2}", "[-1,3)"),
    ("3>x>1", "(1,3)"),
]

DIFFERENT = [
    (r"\sqrt{12}", r"2\sqrt{2}"),
    (r"2\pi", r"2\pi+1"),
    (r"2\pi", "6"),
    ("x^2+2x+1", "x^2+2x+2"),
    ("2x", "2y"),
    ("2x", "2"),
    (r"(1,\sqrt{2})", r"(1,\sqrt{3})"),
    (r"\{1,\sqrt{2}\}", r"\{1,\sqrt{3}\}"),
    ("y=2x+1", "y=2x"),
    ("x>2", r"(3,\infty)"),
    (r"x\ge 2", r"[3,\infty)"),
    (r"(-\infty,\sqrt{2})", r"(-\infty,\infty)"),
]

UNSETTLED = [
    ("1.41421356", r"\sqrt{2}"),  # a decimal may be a rounding: the worker says which
    (r"\frac{1414213562}{1000000000}", r"\sqrt{2}"),
    ("1/2x", "x/2"),
    (r"2\frac{1}{2}x", "x"),
    ("x2", "2x"),
    ("12(3)", "36"),
    ("f(3)", "3f"),
    ("1,000x", "1000x"),
    ("1,234,5x", "5x,1,234"),
    ("N", "n"),
    ("dx", "xd"),
    (r"\sin x", "x"),
    ("x>2", "y>2"),
    ("(1,2]", "(3,1]"),
    ("[1,2]", "(1,2)"),
    ("[1,2,3]", "(1,2,3)"),
    (r"\sqrt{x^2}", "x"),
    (r"\frac{x^2-1}{x-1}", "x+1"),
    ("1/0", "1"),
    ("x=1,y=2", "(1,2)"),
    ("", ""),
]


def settled(gold: str, answer: str) -> bool | None:
    unnamed = expression.without_names(expression.canonical(gold), expression.canonical(answer))
    assert unnamed is not None
    return exact.compare(*unnamed)


@pytest.mark.parametrize(("gold", "answer"), EQUAL)
def test_equal_values_are_settled(gold: str, answer: str) -> None:
    assert settled(gold, answer) is True
    assert settled(answer, gold) is True


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_different_values_are_settled(gold: str, answer: str) -> None:
    assert settled(gold, answer) is False
    assert settled(answer, gold) is False


@pytest.mark.parametrize(("gold", "answer"), UNSETTLED)
def test_what_is_unclear_is_left_to_the_worker(gold: str, answer: str) -> None:
    assert settled(gold, answer) is None


VARIABLES = {"x": 0.7312, "y": 1.937, "k": 1.717, r"\theta": 1.1171}
TOKENS = [
    *(
        "1",
        "2",
        "12",
        "0.5",
        "x",
        "y",
        "e",
        "k",
        r"\pi",
        r"\theta ",
        "+",
        "-",
        "/",
        "^2",
        "^{-1}",
        "^10",
        ".",
        "A",
        "!",
    ),
    *(r"\sqrt{2}", r"\sqrt{\frac{1}{2}}", r"\frac{1}{2}", r"\frac{x}{3}", r"\frac{1}{1+\sqrt{2}}", r"\cdot ", "*", " "),
    *("(", ")", "(x+1)", "(3)", "(x)", "(2+3)", r"(1+\sqrt{2})", r"(2\pi)", "(x+1)^2", "{", "}", "=", r"\times "),
]


def numeric_value(value: surds.Value) -> float:
    symbols = VARIABLES | surds.CONSTANTS
    return math.fsum(
        float(number) * math.sqrt(radicand) * math.prod(symbols[name] ** exponent for name, exponent in powers)
        for (radicand, powers), number in value.items()
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(TOKENS), min_size=1, max_size=7).map("".join))
def test_what_is_read_is_read_as_the_workers_parser_reads_it(source: str) -> None:
    latex = expression.canonical(source)
    assume(gates.refusal(latex) is None)
    try:
        form = exact._form(latex)
    except (exact.Unreadable, surds.TooLarge):
        return
    symbols = {sympy.Symbol(name.strip("\\")): value for name, value in VARIABLES.items()}
    parsed = worker.parse(latex)
    expected = complex(sympy.N(parsed.subs(symbols).doit()))
    assert form.kind == ""
    assert abs(numeric_value(form.items[0]) - expected) <= 1e-9 * max(1.0, abs(expected))


SAME = [
    ["1", r"\frac{3}{3}", "1.0"],
    ["2", r"\sqrt{4}"],
    ["-4", "-8/2"],
    ["0.333333"],
    ["1/3", r"\frac{2}{6}"],
    [r"\sqrt{2}", r"\frac{2}{\sqrt{2}}"],
    ["1.41421356"],
    [r"\pi", r"\frac{2\pi}{2}"],
    [r"\infty"],
    ["x", "1x"],
    ["x^2-1", "(x-1)(x+1)"],
    ["a+b", "b+a"],
]
"""Ways to write one value, one row per value."""


@st.composite
def written_pairs(draw: st.DrawFn) -> tuple[str, str]:
    frame = draw(st.sampled_from(["%s", "%s", "(%s)", "[%s]", r"\{%s\}", "x=%s", "(%s]", "[%s)"]))
    golds = draw(st.lists(st.sampled_from(SAME), min_size=1, max_size=3))
    answers = [draw(st.sampled_from([gold, gold, draw(st.sampled_from(SAME))])) for gold in golds]
    sides = [frame % ",".join(draw(st.sampled_from(row)) for row in rows) for rows in (golds, answers)]
    return expression.canonical(sides[0]), expression.canonical(sides[1])


@settings(max_examples=50, deadline=None)
@given(written_pairs())
def test_what_is_settled_is_what_the_worker_says(pair: tuple[str, str]) -> None:
    outcome = exact.compare(*pair)
    if outcome is not None:
        assert worker.compare(*pair) == ("equal" if outcome else "different")


@pytest.mark.parametrize(
    "latex",
    [
        "(x+y+a+b+1)^{12}",
        "(x+1)^{999}",
        r"((1+\sqrt{2})(1+\sqrt{3})(1+\sqrt{5})(1+\sqrt{7}))^{12}" * 8,
        "(x+1)" * 100,
        r"\sqrt{" + "9" * 60 + "}",
        "9" * 64 + "^{64}",
        ",".join(rf"\sqrt{{{number}}}" for number in range(40, 90)),
        ",".join(rf"\sqrt{{{number}}}" for number in range(40, 72)),
        "(" * 30 + "1" + ")" * 30 + "x",
    ],
)
def test_hostile_expressions_cost_milliseconds(latex: str) -> None:
    start = time.process_time()
    exact.compare(latex, latex + "+1")
    assert time.process_time() - start < 1.0


def test_the_mixture_of_the_benchmark_is_scored_right_and_asks_no_child() -> None:
    for gold, answer, right in scoring.distinct_pairs(300, [scoring._by_rule, scoring._by_rule, scoring._by_algebra]):
        verdict = grade(rf"\boxed{{{answer}}}", gold)
        assert isinstance(verdict, Verdict), f"{answer!r} for {gold!r} goes to the child"
        assert verdict == (right, "ok", answer)
