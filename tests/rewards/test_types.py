"""The rules of every answer type but "math": equal, different and malformed answers."""

from __future__ import annotations

from typing import Any

import pytest

from zppo_jax.rewards import ANSWER_TYPES, check_gold, score

Row = tuple[str, Any, str, str, dict[str, Any]]
CITIES = {"choices": ["London", "Paris", "Rome"]}


def rows(answer_type: str, outcome: str, pairs: list[tuple[str, Any]], **options: Any) -> list[Row]:
    return [(answer, gold, answer_type, outcome, options) for answer, gold in pairs]


TABLE: list[Row] = [
    *rows("string", "right", [("Cat", "cat"), ("cat.", "cat"), (r"\text{cat}", "cat")]),
    *rows("string", "right", [("a  b", "A b"), ("ＣＡＴ", "cat")]),
    *rows("string", "right", [("$x$", "x"), (r"50\%", "50%"), (".", "."), ("straße", "STRASSE")]),
    *rows("string", "wrong", [("cats", "cat"), ("a cat", "cat"), ("not cat", "cat")]),
    *rows("search", "right", [("The Hague", "the hague")]),
    *rows("search", "wrong", [("Hague", "the hague")]),
    *rows("multiple_choice", "right", [("b", "B"), ("(B)", "B"), (r"\text{B}", "B")]),
    *rows("multiple_choice", "right", [("B.", "B"), ("B)", "B"), ("J", "J")]),
    *rows("multiple_choice", "right", [("B: Paris", "B"), ("(B) Paris", "B"), (r"\textbf{(B)}", "B"), ("Ｂ", "B")]),
    *rows("multiple_choice", "right", [("Option B", "B"), ("answer: B", "B"), ("B", "(B) Paris"), ("cat", "Cat")]),
    *rows("multiple_choice", "right", [("C, A", "AC"), ("A and C", "A, C"), ("AC", "A,C")]),
    *rows("multiple_choice", "wrong", [("A", "B"), ("A: B", "B"), ("A", "AC"), ("A, B, C", "AC")]),
    *rows("multiple_choice", "malformed", [("A cat", "A"), ("A or B", "A"), ("A, B", "A"), ("AB", "A"), ("5", "A")]),
    *rows("multiple_choice", "malformed", [("A/B", "B"), ("not B", "B"), ("", "B")][:2]),
    *rows("multiple_choice", "right", [("paris", "B"), ("B", "Paris"), ("B: Paris", "B"), ("B", "B")], **CITIES),
    *rows("multiple_choice", "wrong", [("Rome", "B"), ("A", "Paris")], **CITIES),
    *rows("multiple_choice", "malformed", [("B: Rome", "B"), ("D", "B"), ("Oslo", "B")], **CITIES),
    *rows("multiple_choice", "error", [("B", "Oslo")], **CITIES),
    *rows("multiple_choice", "malformed", [("cat", "A")], choices=["cat", "cat", "dog"]),
    *rows("numeric", "right", [("1.5e3", "1500"), ("1.5E+3", "1500"), (r"1.5\times10^{3}", "1500"), ("1,500", "1500")]),
    *rows("numeric", "right", [("１５００", "1500"), ("0.5", "1/2"), (r"\frac{1}{2}", "0.5")]),
    *rows("numeric", "right", [(r"\frac12", ".5"), ("5.", "5")]),
    *rows("numeric", "right", [("50%", "0.5"), ("50", "50%"), (r"50\%", "50")]),
    *rows("numeric", "right", [("-3", "−3"), ("+3", "3"), (r"\$5", "5")]),
    *rows("numeric", "right", [("5 cm", "5 cm"), ("5cm", "5 centimeters"), ("50 mm", "5 cm")]),
    *rows("numeric", "right", [(r"5\text{ cm}", "5"), ("5", "5 cm")]),
    *rows("numeric", "right", [("2 1/2", "2.5"), (r"2\frac{1}{2}", "2.5"), ("2½", "2.5")]),
    *rows("numeric", "right", [("x = 4", "4"), ("30°", "30"), ("3 apples", "3")]),
    *rows("numeric", "right", [("5 m^2", "5 m²"), ("36 km/h", "10 m/s"), ("50 percent", "50"), ("0", "-0")]),
    *rows("numeric", "wrong", [("5 cm", "5 m"), ("5 m", "5 m^2"), ("1.5e3", "1.5e4")]),
    *rows("numeric", "wrong", [("12", "1.2"), ("1e-300", "0"), ("2", "-2")]),
    *rows("numeric", "wrong", [("3.14", "3.1416"), ("5 apples", "5 pears"), ("25%", "0.5")]),
    *rows("numeric", "malformed", [("cat", "5"), ("5x", "5"), ("1 2", "12"), ("nan", "5")]),
    *rows("numeric", "malformed", [("inf", "5"), ("1/0", "5"), ("5 or 6", "5")]),
    *rows("numeric", "malformed", [("1e999999999", "5"), ("9" * 65, "5")]),
    *rows("numeric", "wrong", [("5²", "52"), ("2π", "6.28"), (r"\sqrt{2}", "1.41421")]),
    *rows("numeric", "right", [("5²", "25"), ("10^3", "1000"), ("2π", "6.28318531")]),
    *rows("numeric", "malformed", [("12,34", "1234"), ("1.2.3", "1.2")]),
    *rows("numeric", "right", [("3.14", "3.1416"), ("-99", "-100")], tolerance=0.01),
    *rows("numeric", "wrong", [("3.2", "3.1416"), ("0.02", "0"), ("-98", "-100")], tolerance=0.01),
    *rows("numeric", "right", [("0.01", "0"), ("-0.01", "0")], tolerance=0.01),
    *rows("integer", "right", [("5", "5"), ("5.0", "5"), ("1,000", "1000"), ("-7", "-7"), ("1e3", "1000")]),
    *rows("integer", "wrong", [("6", "5"), ("-5", "5")]),
    *rows("integer", "malformed", [("5.5", "5"), ("50%", "50"), ("five", "5")]),
    *rows("counting", "right", [("3 apples", "3"), ("３", "3")]),
    *rows("list_any", "right", [("NYC", ["New York", "NYC"]), ("nyc", '["New York", "NYC"]')]),
    *rows("list_any", "right", [("7.0", ["seven", "7"]), ("x", "x")]),
    *rows("list_any", "wrong", [("York", ["New York", "NYC"]), ("New York, NYC", ["New York", "NYC"])]),
    *rows("ordering", "right", [("3, 1, 2", "3,1,2"), ("[3,1,2]", "3, 1, 2")]),
    *rows("ordering", "right", [("3 > 1 > 2", "[3, 1, 2]"), (r"B \to A", "B, A")]),
    *rows("ordering", "right", [(r"\{b; a\}", ["B", "A"]), ("3 1 2", "3,1,2")]),
    *rows("ordering", "right", [("(x, y)", "x,y"), ('["b", "a"]', "b, a")]),
    *rows("ordering", "wrong", [("3,2,1", "3,1,2"), ("3,1", "3,1,2"), ("3,1,2,2", "3,1,2"), ("312", "3,1,2")]),
    *rows("ordering", "malformed", [("3,,1", "3,1"), (",", "3,1")]),
    *rows("number_list", "right", [("1,000, 2,000", ["1000", "2000"]), ("0.50, 1/4", "0.5, 0.25")]),
    *rows("number_list", "right", [("1.01, 2", "1, 2")], tolerance=0.02),
    *rows("number_list", "wrong", [("1.01, 2", "1, 2")]),
    *rows("anls", "right", [("color", ["colour"]), ("Paris", '["paris", "rome"]'), ("abcd", "abxx")]),
    *rows("anls", "wrong", [("rome", ["paris"]), ("abcd", "axxx")]),
    *rows("anls", "wrong", [("color", "colour")], threshold=0.9),
    *rows("grounding", "right", [("[0, 0, 10, 10]", "[0, 0, 10, 10]"), ("[[0,0,10,9]]", "[0,0,10,10]")]),
    *rows("grounding", "right", [("[0,0,10,5]", "[0,0,10,10]")]),
    *rows("grounding", "right", [('[{"bbox_2d": [1, 2, 3, 4]}]', "[[1, 2, 3, 4]]")]),
    *rows("grounding", "right", [(r"\{\"box\": [1,2,3,4]\}".replace(r"\"", '"'), "[1,2,3,4]")]),
    *rows("grounding", "right", [("[[20,20,30,30],[0,0,10,10]]", "[[0,0,10,10],[20,20,30,30]]")]),
    # The first gold fits both answers, the second only the first: a greedy pairing would lose one.
    *rows("grounding", "right", [("[[0,0,10,10],[0,0,10,6]]", "[[0,0,10,10],[0,0,10,16]]")]),
    *rows("grounding", "wrong", [("[0,0,10,4]", "[0,0,10,10]"), ("[0,0,10,10]", "[[0,0,10,10],[20,20,30,30]]")]),
    *rows("grounding", "wrong", [("[[0,0,9,9],[0,0,9,9]]", "[0,0,9,9]")]),
    *rows("grounding", "wrong", [("[[0,0,9,9],[0,0,9,9]]", "[[0,0,9,9],[20,20,30,30]]")]),
    *rows("grounding", "wrong", [("[0,0,1e200,1e200]", "[0,0,9,9]")]),
    *rows("grounding", "malformed", [(box, "[0,0,9,9]") for box in ("[0,0,NaN,9]", "[0,0,Infinity,9]")]),
    *rows("grounding", "malformed", [(box, "[0,0,9,9]") for box in ("[0,0,1e999,9]", "[9,0,0,9]")]),
    *rows("grounding", "malformed", [(box, "[0,0,9,9]") for box in ("[0,0,9]", "[-1,0,9,9]", "[0,0,true,9]")]),
    *rows("grounding", "malformed", [(box, "[0,0,9,9]") for box in ('["0",0,9,9]', "0 0 9 9", "[]")]),
    *rows("grounding", "malformed", [("[" * 4000, "[0,0,9,9]"), ("[0,0," + "9" * 500 + ",9]", "[0,0,9,9]")]),
    *rows("grounding", "malformed", [("null", "[0,0,9,9]")]),
    *rows("grounding", "malformed", [('{"box": [0,0,9,9], "score": NaN}', "[0,0,9,9]")]),
    *rows("clicking", "right", [("[5, 5]", "[0,0,10,10]"), ("(5, 5)", "[0,0,10,10]")]),
    *rows("clicking", "right", [('{"x": 1, "y": 2}', "[0,0,10,10]"), ("[10,10]", "[0,0,10,10]")]),
    *rows("clicking", "right", [('{"point_2d": [25, 25]}', "[[0,0,10,10],[20,20,30,30]]")]),
    *rows("clicking", "wrong", [("[11, 5]", "[0,0,10,10]")]),
    *rows("clicking", "malformed", [("5", "[0,0,10,10]"), ("[NaN, 5]", "[0,0,10,10]")]),
    *rows("clicking", "malformed", [("[5]", "[0,0,10,10]"), ("[0,0,10,10]", "[0,0,10,10]")]),
    *rows("free_form", "right", [("Because it rains.", "because it rains")]),
    *rows("free_form", "needs_judge", [("It rains", "because it rains")]),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "gold", "answer_type", "outcome", "options"), TABLE)
def test_the_rule_of_each_type(answer: str, gold: Any, answer_type: str, outcome: str, options: dict[str, Any]) -> None:
    verdict = score(rf"<think>hm</think>\boxed{{{answer}}}", gold, answer_type, **options)
    expected = (True, "ok") if outcome == "right" else (False, "ok" if outcome == "wrong" else outcome)
    if "[[[[" not in answer:  # an unbalanced hostile answer is cut elsewhere, and only its status matters
        assert verdict.answer == answer.strip()
    assert verdict[:2] == expected


def test_the_table_covers_every_type_but_math() -> None:
    assert {row[2] for row in TABLE} == set(ANSWER_TYPES) - {"math"}


def test_an_unknown_type_is_refused_naming_the_known_ones() -> None:
    for call in (lambda: score(r"\boxed{1}", "1", "maths"), lambda: check_gold("1", "maths")):
        with pytest.raises(ValueError, match=r"'maths'.*math.*multiple_choice.*free_form"):
            call()


@pytest.mark.parametrize("answer_type", ANSWER_TYPES)
def test_what_is_too_long_is_not_looked_at(answer_type: str) -> None:
    assert score(r"\boxed{" + "1" * 5000 + "}", "1", answer_type).status == "too_long"


def test_a_negative_tolerance_is_refused() -> None:
    with pytest.raises(ValueError, match="tolerance"):
        score(r"\boxed{1}", "1", "numeric", tolerance=-0.1)


@pytest.mark.parametrize(
    ("gold", "answer_type", "options"),
    [(*row[1:3], row[4]) for row in TABLE if row[3] == "right"]
    + [("5", "math", {}), (r"x^2+1", "math", {}), ("hello world", "math", {}), (r"5\text{ cm}", "math", {})],
)
def test_a_good_gold_passes_its_check(gold: Any, answer_type: str, options: dict[str, Any]) -> None:
    assert check_gold(gold, answer_type, **options) is None


@pytest.mark.parametrize(
    ("gold", "answer_type"),
    [
        ("", "string"),
        ("  ", "math"),
        ("x" * 513, "string"),
        ("{1", "math"),
        ("10^{10^{10^{10}}}", "math"),
        (r"A \cap B", "math"),
        ("five", "numeric"),
        ("5.5", "integer"),
        ("[3,2,1,4]", "grounding"),
        ("here", "clicking"),
        ("3,,1", "ordering"),
    ],
)
def test_a_gold_that_cannot_be_scored_is_named(gold: str, answer_type: str) -> None:
    assert "gold" in (check_gold(gold, answer_type) or "")


def test_a_gold_outside_the_choices_is_named() -> None:
    assert "gold" in (check_gold("Z", "multiple_choice", **CITIES) or "")
