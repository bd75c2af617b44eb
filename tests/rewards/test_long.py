r"""Answers beyond the limits of the parser: decided where they can be, in time that grows with their length alone."""

from __future__ import annotations

import time
from typing import Any

import pytest

from zppo_jax.rewards import Verdict, score
from zppo_jax.rewards.grade import grade

LONG = "+".join(f"x^{{{power}}}" for power in range(200))
TEXT = " ".join(f"word{number}" for number in range(200))
DEEP = "(" * 40 + "x" + ")" * 40
TOWER = "2^{3^{5^{7}}}"


@pytest.mark.parametrize(
    ("answer", "gold", "answer_type", "correct", "status"),
    [
        (LONG, LONG, "math", True, "ok"),
        (LONG.replace("+", r" + \,").replace("{10}", "{ 10 }"), f"$ {LONG} $", "math", True, "ok"),
        (LONG.replace("{10}", "{11}"), LONG, "math", False, "error"),  # perhaps the same in another form
        (LONG, "x", "math", False, "too_long"),
        ("5" + " " * 600, "5", "math", True, "ok"),
        (" ".join(["x"] * 400), "x", "math", False, "too_long"),
        (TEXT, TEXT.upper() + ".", "string", True, "ok"),
        (TEXT.replace("word9 ", "word8 "), TEXT, "string", False, "too_long"),
        (TEXT, ["a", TEXT], "list_any", True, "ok"),
        (f"B: {TEXT}", "B", "multiple_choice", True, "ok"),
        ("5" * 600, "5", "numeric", False, "too_long"),
        (DEEP, DEEP, "math", True, "ok"),
        (DEEP, "x", "math", False, "malformed"),
        (TOWER, TOWER.replace("{", "{ "), "math", True, "ok"),
        (TOWER, "2^{3^5}", "math", False, "malformed"),
    ],
)
def test_what_is_too_much_for_a_parser_is_decided(
    answer: str, gold: str | list[str], answer_type: str, correct: bool, status: str
) -> None:
    options: dict[str, Any] = {"choices": ["other", TEXT]} if answer_type == "multiple_choice" else {}
    verdict = score(rf"\boxed{{{answer}}}", gold, answer_type, **options)
    assert verdict[:2] == (correct, status)


HOSTILE = {
    "digits": "1",
    "pairs": "{}",
    "text": "word ",
    "wide": "中文",
    "squares": "x²",
    "commands": r"\text{a}",
    "commas": "1,",
    "backslashes": r"\\",
    "escapes": r"\{",
    "boxes": r"\boxed{}",
}


def seconds(piece: str, length: int, answer_type: str) -> float:
    """Processor time to grade an answer of that many characters, the least of three."""
    response = rf"\boxed{{{piece * (length // len(piece))}}}"
    times = []
    for _ in range(3):
        start = time.process_time()
        assert isinstance(grade(response, "5", answer_type), Verdict)
        times.append(time.process_time() - start)
    return min(times)


@pytest.mark.parametrize("name", HOSTILE)
def test_the_time_of_a_million_characters_is_linear(name: str) -> None:
    """Measured on one core of a Xeon: 18 to 47 ms (docs/rewards.md)."""
    for answer_type in ("math", "ordering"):
        half, whole = (seconds(HOSTILE[name], length, answer_type) for length in (500_000, 1_000_000))
        assert whole < max(4 * half, 0.01)
        assert whole < 0.2
