r"""Ways to write the same, and near ones that differ: dates, ratios, words for signs, labels, vectors, units, lists."""

from __future__ import annotations

from typing import Any

import pytest

from zppo_jax.rewards import Answer, ScoringPool, Verdict

Pairs = list[tuple[str, str]]

MATH: dict[str, tuple[Pairs, Pairs]] = {
    "times": (
        [("15:00", "3:00 PM"), ("3 p.m.", "3:00 PM"), ("3{:}05", "03:05"), (r"3:00\text{ PM}", "3:00 pm")],
        [("3:00 PM", "3:00"), ("3 PM", "3 AM"), ("3 PM", "3"), ("13:00 PM", "1:00 AM"), ("3:30", "3.5")],
    ),
    "dates": (
        [
            *((written, "2023-05-07") for written in ("May 7th, 2023", "7 May 2023", "2023年5月7日", "2023/5/7")),
            *(("Jan 5", "January 5th"), ("05/07/2023", "5-7-2023"), ("25/12/2020", "December 25, 2020")),
        ],
        [("2023年7月5日", "2023-05-07"), ("May 7, 2022", "May 7, 2023"), ("7 May", "May 17"), ("1/2/2024", "2/1/2024")],
    ),
    "ratios": (
        [("2 to 3", "4:6"), ("2∶3", "2:3"), ("x:y=2:3", "2:3"), (r"\frac12:\frac13", "3:2"),
         (r"\sqrt2:1", r"2:\sqrt2")],
        [("2:3:4", "2/12"), (r"1:2:\sqrt3", r"1:\sqrt3:2"), ("6:3:2", "1"), ("x:y=2:3", "y:x=2:3"), ("1:0", "2:1")],
    ),
    "magnitudes": (
        [("3千", "3000"), ("5 hundred thousand", "500000"), ("6 Million", "6000000"), ("10^6", "1 million")],
        [("3千", "3"), ("5 lakh", "5"), ("5 thousandths", "5000"), ("5 tens", "5")],
    ),
    "angles": ([("30°15′", r"30^\circ 15'"), (r"30^\circ15^{\prime}", "30.25")], [("30'", "30"),
        ("5''", "5'"), (r"5\%", r"5^\circ"), ("Rs 5", "5 s"), (r"2\infty", r"\infty")]),
    "formulas": ([(r"\ce{H2O}", r"\mathrm{H_2O}"), ("H₂O", "H2O")], [("Co", "CO"), ("Fe^{2+}", "Fe^{3+}")]),
    "compound quantities": (
        [("5 ft. 6 in.", "66 in"), ("5元6角", "5.6元"), ("1 L 500 mL", "1.5 L"), ("2 years 6 months", "30 months")],
        [("2 years 6 months", "2.6 years"), ("6 ft 5 in", "5 ft 6 in")],
    ),
    "matrices": (
        [
            (r"\left[\begin{array}{c|c}1&2\\3&4\end{array}\right]", r"\begin{smallmatrix}1&2\\3&4\end{smallmatrix}"),
            (r"\begin{pmatrix}1\cr 2\\\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
            (r"\begin{pmatrix}1\\2\end{pmatrix}", "(1,2)"),
        ],
        [
            (r"\begin{pmatrix}1\\2\end{pmatrix}", "(2,1)"),
            (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\{1,2\}"),
            (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        ],
    ),
    "equations": (
        [(r"f^{-1}(x)=\frac{x-1}{2}", r"\frac{x-1}{2}"), ("f(x)=2x", "y=2x"), ("2^3=8", "8")],
        [("5", "x+y=5"), (r"\frac{dx}{dy}=2x", r"\frac{dy}{dx}=2x"), ("x'", "x"), ("X", "x"), ("2N+1", "2n+1")],
    ),
    "regions": (
        [
            ("x>1 and x<2", "1<x<2"),
            (r"(-\infty,1)U(2,\infty)", r"x<1 \text{ or } x>2"),
            ("|x|<2", "-2<x<2"),
            ("all real numbers", r"(-\infty,\infty)"),
            ("no solution", r"\emptyset"),
        ],
        [("x>1 or x<2", "1<x<2"), (r"\emptyset", r"\{\emptyset\}"), ("|x|<2", "|x|>2"), (r"\mathbb{Z}", r"\mathbb{R}")],
    ),
    "families": (
        [(r"x=2n\pi\ (n\in\mathbb{Z})", r"2k\pi, k\in\mathbb Z"), (r"2k\pi", r"2k\pi, k\in\mathbb{Z}")],
        [(r"k\pi, k\in\mathbb{Z}", r"2k\pi, k\in\mathbb{Z}"), (r"k, k\in\mathbb{N}", r"k, k\in\mathbb{Z}")],
    ),
    "dots": (
        [("0.333...", r"\frac13"), (r"0.\dot{1}4285\dot{7}", r"\frac17"), ("0.1(6)", r"\frac16"),
         ("3.14159...", r"\pi")],
        [("0.33", "0.333..."), ("1,2,10", r"1,2,\ldots,10"), (r"0.\dot{1}\dot{2}", "0.12")],
    ),
    "complex numbers": (
        [("i^2", "-1"), (r"(1+i)^2", "2i"), (r"\sqrt{-4}", "2i"), (r"\frac{1}{1+i}", r"\frac{1-i}{2}")],
        [("3-4i", "3+4i"), ("5", "3+4i"), ("2", "2i"), (r"\pm 1", r"\pm i")],
    ),
    "keyboard": (
        [
            ("sin(x)", r"\sin x"),
            ("2*pi", r"2\pi"),
            ("x**2", "x^2"),
            ("+-3", r"\pm 3"),
            ("sqrt(3)/2", r"\frac{\sqrt3}{2}"),
            ("log_2(8)", "3"),
            (r"\mathrm{ln}2", r"\ln 2"),
            (r"\binom52", "10"),
            ("infinity", r"\infty"),
        ],
        [("sin(x)", r"\cos x"), ("5 min", "5 sec"), ("log_8(2)", "3"), ("2*pi", "2"), ("+-3", "3")],
    ),
    "labels": (
        [
            *((written, "5") for written in ("The answer is 5", "答案：5", "Area: 5", r"\text{Area: } 5", "about 5")),
            *((written, "5") for written in (r"\therefore x=5", r"{\bf 5}", r"\large 5", "$x=5$.")),
            *(("minus 5", "-5"), (r"P(X=2)=\frac13", r"\frac13"), (r"\vec{a}\cdot\vec{b}=5", "5")),
            (r"4\vec j+3\vec i", r"3\vec{i}+4\vec{j}"),
        ],
        [
            *((written, "5") for written in ("The answer is not 5", "5 below zero", "at least 5", "twice 5", "5+")),
            ("Area: 6", "Perimeter: 6"),
        ],
    ),
    "words": (
        [("blue and red", "red and blue"), ("A, B and C", "A,B,C"), ('"Monday"', "Monday"),
         (r"\frac{bac}{4S}", r"\frac{abc}{4S}")],
        [("cat", "act"), ("red, blue", "red, green"), (r"\triangle ABC", r"\triangle ACB"), ("yes", "yes and no"),
         ("A and B", "A or B")],
    ),
}  # fmt: skip

CITIES = {"choices": ["London", "Paris", "Rome"]}
NUMERIC_SAME = [
    *(("18 km/h", "5 m/s"), ("5 mph", "5 miles per hour"), ("1 L", "1000 cm^3"), ("5 mL", "5 cm3"), ("5㎡", "5 m^2")),
    *(("5 ms^{-1}", "5 m/s"), ("5 kgs", "5 kg"), ("5平方米", "5 m²"), ("50¢", r"\$0.50"), ("USD 5", r"\$5")),
    *(("₹5", "5"), ("5 kWh", "18 MJ"), ("5 μm", "5 micrometers"), ("5 sq ft", "5 ft^2"), ("Answer: 5", "5")),
]
NUMERIC_OTHER = [
    *(
        ("5 mW", "5 MW"),
        ("5 m^2", "5 m"),
        ("5 dB", "5 m"),
        ("50¢", r"\$50"),
        ("5 out of 10", "5"),
        ("5 through 6", "5"),
    ),
    *(("5 L", "5 mL"), ("5 mph", "5 km/h"), ("5±1", "5"), ("1.2.3", "1.2")),
]
TYPED: list[tuple[str, Any, Pairs, Pairs]] = [
    ("numeric", {}, NUMERIC_SAME, NUMERIC_OTHER),
    (
        "multiple_choice",
        CITIES,
        [
            *((written, "B") for written in ("B – Paris", "【B】", "**B**: Paris", "Option B is correct")),
            ("正确答案是B", "B"),
            *((written, "B") for written in ("B is the correct answer", "B选项", "I choose B", "It is B", "B .")),
        ],
        [(written, "B") for written in (
            "B is not correct", "B is wrong", "anything but B", "A. London B. Paris", "Bob")],
    ),
    (
        "multiple_choice",
        {},
        [(written, "ACD") for written in (
            "A, C, and D", "A C D", "(A)(C)(D)", "A/C/D", "Options A, C, D", '["A","C","D"]')],
        [(written, "ACD") for written in ("A C", "not ACD", "A or C or D", "A C D E")],
    ),
    (
        "ordering",
        {},
        [(written, "A, B, C") for written in ("A-B-C", "ABC", "(A)(B)(C)", "A、B、C", "A, B, and C")],
        [(written, "A, B, C") for written in ("ACB", "A-B", "A or B, C", "AABC")],
    ),
    ("string", {}, [("**Rome**", "Rome"), ("“Rome”", "Rome"), ("m²", "m^2")], [("10²", "102"), ("resume", "résumé")]),
    (
        "grounding",
        {},
        [
            (written, "[1,2,30,40]")
            for written in ("(1,2),(30,40)", "[1，2，30，40].", "{'bbox_2d': [1,2,30,40]}", r"\text{[1,2,30,40]}")
        ],
        [(written, "[1,2,30,40]") for written in ("(30,40),(1,2)", "[1,2,30,40],[5,6,7,8]", "(1,2),(30,40),(5,6)")],
    ),
    (
        "clicking",
        {},
        [(written, "[1,2,30,40]") for written in (
            "x=10, y=20", "{'x': 10, 'y': 20}", '{"coordinate": [10,20]}', "(10，20).")],
        [(written, "[1,2,30,40]") for written in ("x=100, y=20", "(10,20),(11,21)", "{'x': 10}", "y=10")],
    ),
]  # fmt: skip


def cases() -> list[tuple[Answer, bool]]:
    """Math pairs in both directions, the others as they are."""
    rows = [
        (Answer(rf"\boxed{{{one}}}", other), expected)
        for same, different in MATH.values()
        for pairs, expected in ((same, True), (different, False))
        for pair in pairs
        for one, other in (pair, pair[::-1])
    ]
    typed = [
        (Answer(rf"\boxed{{{answer}}}", gold, kind, "final", options), expected)
        for kind, options, same, different in TYPED
        for pairs, expected in ((same, True), (different, False))
        for answer, gold in pairs
    ]
    return rows + typed


@pytest.fixture(scope="module")
def verdicts() -> list[tuple[Answer, bool, Verdict]]:
    with ScoringPool(1, 20.0) as pool:
        found = pool.score_many(answer for answer, _ in cases())
    return [(answer, expected, verdict) for (answer, expected), verdict in zip(cases(), found, strict=True)]


def test_no_wrong_answer_is_rewarded(verdicts: list[tuple[Answer, bool, Verdict]]) -> None:
    assert [(case.response, case.gold) for case, expected, one in verdicts if one.correct and not expected] == []


def test_no_right_answer_is_refused(verdicts: list[tuple[Answer, bool, Verdict]]) -> None:
    refused = [(case.response, case.gold, one.status) for case, right, one in verdicts if right and not one.correct]
    assert refused == []
