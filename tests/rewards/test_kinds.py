r"""Notations that a parser reads as something else, kind by kind: what is the same, and what is not.

A wrong answer that is rewarded teaches it, so every kind has answers that are near and wrong.
"""

from __future__ import annotations

from typing import Any

import pytest

from zppo_jax.rewards import Answer, ScoringPool, check_gold

Kinds = dict[str, list[tuple[str, str]]]

SAME: Kinds = {
    "roots": [
        ("√51", r"\sqrt{51}"),
        ("3√2", r"3\sqrt{2}"),
        ("√(2+x)", r"\sqrt{2+x}"),
        ("∛8", "2"),
        ("√3/2", r"\frac{\sqrt3}{2}"),
    ],
    "thousands": [
        ("1,000", "1000"),
        (r"11,\! 111", "11111"),
        (r"10\,080", "10080"),
        ("10 080", "10080"),
        ("1'000'000", "1000000"),
        ("1{,}000", "1000"),
        (r"0.\overline{3}", r"\frac{1}{3}"),
        (r"0.1\overline{6}", r"\frac16"),
    ],
    "magnitudes": [
        ("1.2 million", "1200000"),
        (r"1.2\text{ million}", "1200000"),
        ("5 thousand", "5000"),
        ("5 dozen", "60"),
        ("120万", "1200000"),
        ("1.2亿", "120000000"),
        ("3.2 trillion", "3200000000000"),
        ("5 million dollars", r"\$5000000"),
    ],
    "matrices": [
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        (r"\begin{pmatrix}1\\[4pt]2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        (r"\left[\begin{array}{cc}1&2\\3&4\end{array}\right]", r"\begin{bmatrix}1 & 2 \\ 3 & 4\end{bmatrix}"),
    ],
    "names": [
        ("f(2)=5", "5"),
        (r"\angle ABC = 30^\circ", "30"),
        (r"\text{Area} = 6", "6"),
        ("AB = 5", "5"),
        ("|AB|=5", "5"),
        ("S_{10}=55", "55"),
        (r"x \approx 17.3", "17.3"),
        (r"\sim 3", "3"),
        (r"P(A)=\frac{1}{2}", "0.5"),
        ("5", "x=5"),
    ],
    "equations": [
        ("y=2x", "2x-y=0"),
        (r"x=\frac{y}{2}", "y=2x"),
        ("2x+4y=12", "x+2y=6"),
        ("f(x)=2x", "f(x)=x+x"),
        (r"0.5 = \frac12", "0.5"),
        ("y=2x+1", "y=1+2x"),
        (r"x \equiv 10 \pmod{7}", r"x \equiv 3 \pmod 7"),
    ],
    "times, ratios and dates": [
        ("3:00", "03:00"),
        ("9:30 a.m.", "9:30 AM"),
        ("4:6", "2:3"),
        ("2:3", r"\frac{2}{3}"),
        ("05/07/2023", "5/7/2023"),
        ("2010–2015", "2010-2015"),
    ],
    "compound quantities": [
        ("5 ft 7 in", "67 in"),
        ("1 h 20 min", "80 min"),
        ("3 hours and 20 minutes", "200 minutes"),
        (r"30^\circ 15'", "30.25"),
        ("2 m 5 cm", "2.05 m"),
        ("5'7\"", "5 ft 7 in"),
    ],
    "formulas": [("CO2", "CO_2"), (r"\mathrm{Fe_2O_3}", r"\text{Fe}_2\text{O}_3"), ("C_6H_{12}O_6", "C6H12O6")],
    "units": [
        (r"9.8\ \mathrm{m\,s^{-2}}", "9.8 m/s^2"),
        (r"10\,\mathrm{k}\Omega", "10000 Ω"),
        (r"20\ \mu\text{F}", "20"),
        ("30 °C", "30"),
        ("12 square meters", "12 m^2"),
        ("12个", "12"),
        ("5 €", "5"),
        ("50 cents", r"\$0.50"),
        ("5 元", "5"),
    ],
    "units of expressions": [
        (r"3\pi\text{ cm}", r"3\pi\text{ centimeters}"),
        (r"3\pi\text{ cm}", r"30\pi\text{ mm}"),
        (r"3\pi cm", r"3\pi"),
        (r"3\pi\text{ sq. cm}", r"3\pi\text{ cm}^2"),
        (r"5\sqrt2\text{ m/s}", r"5\sqrt2 \text{ meters per second}"),
        (r"3\text{ cm}, 4\text{ cm}", "3,4"),
        (r"\{1\text{ m}, 2\text{ m}\}", r"\{200\text{ cm}, 100\text{ cm}\}"),
        (r"10\%, 20\%", "0.1, 0.2"),
    ],
    "wrappers": [
        ("**42**", "42"),
        ("`42`", "42"),
        (r"\boldsymbol{5}", "5"),
        (r"\textcolor{red}{5}", "5"),
        ("{5}", "5"),
        (r"\Bigl(\frac12,\infty\Bigr)", r"(\frac{1}{2},\infty)"),
        (r"\lbrace 1,2\rbrace", r"\{1,2\}"),
    ],
    "lists and sets": [
        ("1728 and 1331", r"1331 \text{ and } 1728"),
        ("1728, 1331", "1331 and 1728"),
        ("1、2", "1,2"),
        ("1 or 2", "2, 1"),
        (r"\{x \mid 1 < x < 2\}", "(1,2)"),
        (r"\varnothing", r"\emptyset"),
    ],
    "brackets": [
        ("{2, 1}", r"\{1,2\}"),
        ("2, 1", r"\{1,2\}"),
        ("1,2", "(1,2)"),
        (r"\langle 1,2\rangle", "(1,2)"),
        ("]1,2]", "(1,2]"),
        (r"\{(1,2)\}", "(1,2)"),
        ("(x,y)=(1,2)", "x=1,y=2"),
        ("y=2, x=1", "(1,2)"),
        ("x=1,y=2", "1,2"),
        ("[1,2,3]", "(1,2,3)"),
        (r"x\in(1,2)", "1<x<2"),
        (r"\{(1,2),(3,4)\}", "(3,4) and (1,2)"),
        (r"\pm 2", r"\{-2,2\}"),
        ("x = 1 or x = 2", r"\{1,2\}"),
    ],
}

OTHER: Kinds = {
    "roots": [("√51", r"\sqrt{5}"), (r"\sqrt{5}1", r"\sqrt{51}"), (r"5\sqrt2", r"2\sqrt5"), ("∛8", r"2\sqrt{2}")],
    "thousands": [
        ("1,2", "12"),
        ("1.000.000", "1"),
        ("12 34", "1234"),
        ("100,000,000", "100000"),
        (r"0.\overline{3}", "0.3"),
        (r"0.\overline{36}", "0.36"),
    ],
    "magnitudes": [
        ("5 million", "5"),
        ("5 million", "5 billion"),
        ("5 thousand", "5"),
        ("5 dozen", "5"),
        ("5亿", "5"),
        ("5k", "5"),
    ],
    "matrices": [
        (r"\begin{pmatrix} 3 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 3 \end{pmatrix}"),
        (r"\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"),
        (r"\begin{pmatrix} 1 & 6 \\ 1 & 1 \end{pmatrix}", r"\begin{pmatrix} 2 & 3 \\ 1 & 1 \end{pmatrix}"),
    ],
    "names": [
        ("f(2)=6", "f(2)=5"),
        (r"\gcd(a,b)=5", r"\gcd(a,b)=6"),
        ("x=5", "y=5"),
        (r"\text{Area} = 6", r"\text{Perimeter} = 6"),
        (r"\neq 5", "5"),
        ("2x=5", "x=5"),
        ("2x=5", "5"),
    ],
    "equations": [
        (r"\frac{dy}{dx}=2x", r"\frac{dy}{dx}=3x"),
        ("f(x)=2x", "f(x)=3x"),
        ("2x+3y=6", "2x+3y=7"),
        ("5=6", "7=8"),
        ("1=1", "2=2"),
        ("x^2+y^2=4", "x^2+y^2=2"),
        ("y=2x", "x=2y"),
        (r"x \equiv 4 \pmod{7}", r"x \equiv 3 \pmod{7}"),
    ],
    "times, ratios and dates": [
        ("3:00", "9:00"),
        ("14:20", "7:10"),
        ("3:00", "3"),
        ("9:30 am", "9:30 pm"),
        ("3:5:4", "3:4:5"),
        ("1:2", "2:1"),
        ("2023-05-07", "2023-07-05"),
        ("2/4/2024", "1/2/2024"),
        ("2010-2015", "2011-2016"),
    ],
    "undefined values": [("1/0", "2/0"), (r"\frac{3}{0}", r"\frac{9}{0}"), ("0/0", "0/0+1"), (r"\infty", r"-\infty")],
    "compound quantities": [
        ("7 ft 5 in", "5 ft 7 in"),
        ("20 h 1 min", "1 h 20 min"),
        ("5 ft 7 ft", "12 ft"),
        (r"30^\circ 15'", "30.15"),
        ("2 m 5 cm", "2.5 m"),
        ("30'", "30^\\circ"),
    ],
    "formulas": [
        ("N2O", "NO2"),
        ("A12", "12A"),
        ("H_2O", "HO_2"),
        ("C_6H_{10}O_6", "C_6H_{12}O_6"),
        ("B3", "3B"),
        ("2N", "N_2"),
    ],
    "units": [
        ("5 cm", "5 m"),
        ("5 km/h", "5 m/s"),
        ("50 dollars", "50 cents"),
        ("30 °F", "30 °C"),
        ("3 quarters", "3"),
        ("5 AM", "5 PM"),
    ],
    "units of expressions": [
        (r"3\pi\text{ cm}", r"3\pi\text{ m}"),
        (r"3\pi\text{ cm}", r"3\pi\text{ cm}^2"),
        (r"3\pi\text{ m}", r"30\pi\text{ mm}"),
        (r"5\sqrt2\text{ m/s}", r"5\sqrt2\text{ km/h}"),
        (r"3\pi\text{ apples}", r"3\pi\text{ pears}"),
        ("3 cm, 4 m", "3 m, 4 cm"),
        (r"10\%, 20\%", "0.1, 0.3"),
        (r"(1\text{ m},2\text{ m})", r"(2\text{ m},1\text{ m})"),
    ],
    "lists and sets": [
        ("1728", r"1331 \text{ and } 1728"),
        (r"5 \text{ or } 6", "5"),
        ("1 and 2", "12"),
        (r"\{x|1<x<3\}", "(1,2)"),
    ],
    "brackets": [
        ("(1,2)", r"\{1,2\}"),
        ("{1,2}", "(1,2)"),
        ("[1,2]", r"\{1,2\}"),
        ("(1,2,3)", r"\{1,2,3\}"),
        (r"x\in(1,2)", r"\{1,2\}"),
        (r"\{(1,2)\}", r"\{1,2\}"),
        (r"\{\{1,2\}\}", r"\{(1,2)\}"),
        ("2,1", "(1,2)"),
        ("(1,2)", "2,1"),
        ("1,2", "[1,2]"),
        ("1<x<2", "1,2"),
        ("(1,2)", "1 or 2"),
        ("(1,2)", "x=1,x=2"),
        ("(2,3)", "x=2,3"),
        ("2,1", "x=1,y=2"),
        ("(2,1)", "x=1,y=2"),
        ("(x,y)=(1,2)", "x=2,y=1"),
        ("(x,y)=(1,2)", "(y,x)=(1,2)"),
        ("x=1,y=2", r"\{1,2\}"),
        ("(-1,1)", r"\pm 1"),
        (r"(1,\infty)", r"1,\infty"),
        ("((1,2),(3,4))", r"\{(1,2),(3,4)\}"),
        (r"(1,2)\cup(3,4)", "(1,2),(3,4)"),
        ("1,1", "1"),
    ],
}

CITIES = {"choices": ["London", "Paris", "Rome"]}
ANGLES = {"choices": ["20°", "30^\\circ", "60°"]}
CHOICES: list[tuple[str, str, bool, dict[str, Any]]] = [
    *[
        (answer, "B", True, CITIES)
        for answer in ("B (Paris)", "B - Paris", "B, Paris", "B Paris", "the answer is Paris", "**B**")
    ],
    *[(answer, "B", True, {}) for answer in ("选项B", "B。", "[B]", "{B}", '"B"', "`B`", "答案：B")],
    *[(answer, "B", True, ANGLES) for answer in (r"30^\circ", "30°", "B. 30°", r"(B) 30^{\circ}")],
    *[(answer, "B", True, {"choices": ["1", "1/2", "2"]}) for answer in (r"\frac{1}{2}", "0.5", r"B. $\frac12$")],
    *[(answer, "B", True, {"choices": ["E", "F", "G"]}) for answer in ("F", "B")],
    ("III", "C", True, {"choices": ["I", "II", "III"]}),
    ("A、C", "AC", True, {}),
    *[(answer, "B", False, CITIES) for answer in ("B Rome", "B - Rome", "A or B", "Berlin", "C, Paris")],
    *[(answer, "A", False, {}) for answer in ("A cat", "A, B", "A/B", "Apple")],
    ("20°", "B", False, ANGLES),
]

TYPED: list[tuple[str, str, str, bool]] = [
    *[
        (answer, "3", "integer", True)
        for answer in (r"\textbf{3}", "(3)", "{3}", r"\text{3}", r"\sim 3", r"\text{Total} = 3", "3 cans of soda")
    ],
    *[(answer, "3", "integer", False) for answer in ("3 or 4", "3 more", "3 thirds", "3 squared", "3,4")],
    ("2\\pi", "6.28318531", "numeric", True),
    ("10^3", "1000", "numeric", True),
    ("2\\pi", "6.28", "numeric", False),
    *[
        (answer, "A>B>C", "ordering", expected)
        for answer, expected in (("C<B<A", True), ("A<B<C", False), ("A, B, C", True), ("A<B>C", False))
    ],
    *[
        (answer, "it’s 2010–2015", "string", expected)
        for answer, expected in (("it's 2010-2015", True), ("its 2010-2015", False))
    ],
    *[
        (answer, "[400,200,600,400]", "clicking", True)
        for answer in (
            "500, 300",
            r"\left(500,\ 300\right)",
            '[{"point_2d": [500, 300], "label": "x"}]',
            '```json\n[{"point_2d": [500, 300]}]\n```',
        )
    ],
    ("399, 300", "[400,200,600,400]", "clicking", False),
    ("400, 200, 600, 400", "[400,200,600,400]", "grounding", True),
]


def cases() -> list[tuple[Answer, bool]]:
    def math(table: Kinds, expected: bool) -> list[tuple[Answer, bool]]:
        pairs = [pair for pairs in table.values() for pair in pairs]
        return [(Answer(rf"\boxed{{{answer}}}", gold, "math", "final", {}), expected) for answer, gold in pairs]

    choices = [
        (Answer(rf"\boxed{{{a}}}", gold, "multiple_choice", "final", options), e) for a, gold, e, options in CHOICES
    ]
    typed = [
        (Answer(rf"\boxed{{{answer}}}", gold, kind, "final", {}), expected) for answer, gold, kind, expected in TYPED
    ]
    return [*math(SAME, True), *math(OTHER, False), *choices, *typed]


@pytest.fixture(scope="module")
def verdicts():
    with ScoringPool(1, 20.0) as pool:
        return list(zip(cases(), pool.score_many(answer for answer, _ in cases()), strict=True))


def test_no_wrong_answer_is_rewarded(verdicts):
    rewarded = [
        (case.response, case.gold) for (case, expected), verdict in verdicts if verdict.correct and not expected
    ]
    assert rewarded == []


def test_no_right_answer_is_refused(verdicts):
    refused = [
        (c.response, c.gold, verdict.status) for (c, expected), verdict in verdicts if expected and not verdict.correct
    ]
    assert refused == []


def test_a_gold_that_only_its_own_spelling_would_match_is_found():
    assert check_gold(r"x=2 \text{ when } y=3", "math") is not None
    assert check_gold(r"\text{blue whale}", "math") is None and check_gold("x_1=2, x_2=3", "math") is None


def test_every_outcome_is_the_answers_own(verdicts):
    assert all(verdict.decided for _, verdict in verdicts)
