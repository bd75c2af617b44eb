r"""Type "math": comparisons that need no computer algebra system, and the gates for those that do.

In order: exact equality after normalisation, letters and words, exact numbers, roots and polynomials (`exact`). An
expression must first pass the gates (length, nesting, digit runs, factorials, exponent towers). Only comparisons that
none of these steps settles go to the worker of `pool`; no library parser sees model text in this process.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from zppo_jax.rewards import exact, numeric, text
from zppo_jax.rewards.verdict import MalformedAnswer, Status

MAX_CHARS = 512
_MAX_NESTING = 32
_MAX_EXPONENT_NESTING = 2

_CLOSERS = {")": "(", "]": "[", "}": "{"}
_LONG_DIGITS = re.compile(rf"[0-9]{{{numeric.MAX_DIGITS + 1},}}")
_BIG_FACTORIAL = re.compile(r"[0-9]{5,}\s*[)}\]]*\s*!|!\s*!")
# a^b^c without braces is a double superscript in TeX and a tower elsewhere: an answer has no use for it.
_BARE_TOWER = re.compile(r"\^\s*[0-9]+\s*\^|\*\*[^+\-]*\*\*")
_HUGE_EXPONENT = re.compile(r"\^\s*\{?\s*[+-]?(?:[0-9]{6,}|[0-9]{2,}\s*\^)")

_SHORT_FRACTION = re.compile(r"\\frac\s*([0-9A-Za-z])\s*([0-9A-Za-z])(?![0-9])")
_SHORT_FRACTION_TOP = re.compile(r"\\frac\s*([0-9A-Za-z])\s*\{")
_SHORT_ROOT = re.compile(r"\\sqrt\s*([0-9A-Za-z])")
_SHORT_INDEX = re.compile(r"(?<!^)_\s*([0-9A-Za-z])(?![0-9A-Za-z])")
# 120_3 is a number in base 3, which the parser would read as 120.
_NUMBER_WITH_BASE = re.compile(r"[0-9)}]\s*_")
_BRACED_CHARACTER = re.compile(r"([\^_])\{([0-9A-Za-z])\}")
_SPACE = re.compile(r"\s")
_SPACE_THAT_SEPARATES = re.compile(r"(?<=[0-9A-Za-z])\s+(?=[0-9A-Za-z])")
_CHOICE_GOLD = re.compile(r"^[A-J]$")
_WORD = re.compile(r"[^\W\d_]{3,}")
_ALL_LETTERS = re.compile(r"^[^\W\d_][^\W\d_' -]+$")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_TRAILING_TEXT = re.compile(r"\\(?:text|textrm|mathrm|mbox)\s*\{\s*([^{}]*?)\s*\}\s*(?:\^\s*\{?\s*([1-9])\s*\}?)?$")
_CONNECTIVE = re.compile(r"\\text\s*\{\s*(?:or|and|if|for)\s*\}")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{[a-z]+\*?\}")
_FUNCTIONS = frozenset(
    ("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "log", "exp",
     "lim", "sqrt", "min", "max", "gcd", "lcm", "mod", "det")
)  # fmt: skip


class Decision(NamedTuple):
    """A verdict without the answer, or (`pending` set) the pair of texts that the worker must compare."""

    correct: bool
    status: Status
    pending: tuple[str, str] | None = None


# Cached: the responses of a group share their gold, and often their answer.
_remembered = functools.lru_cache(8192)


@_remembered
def canonical(source: str) -> str:
    """The normal form of a LaTeX answer: no fences, spacing commands or short forms; spaces only as separators."""
    latex = text.unfence(numeric.clean_spacing(text.unfence(text.plain(source))))
    latex = latex.removesuffix(".").rstrip()
    if "\\" in latex or "_" in latex:
        latex = _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", latex)
        latex = _SHORT_FRACTION_TOP.sub(r"\\frac{\1}{", latex)
        latex = _SHORT_INDEX.sub(r"_{\1}", latex)
        latex = _SHORT_ROOT.sub(r"\\sqrt{\1}", latex)
    return latex


@_remembered
def _key(latex: str) -> str:
    """A string key that equal answers share: text commands unwrapped, single-character braces and spaces removed."""
    key = text.unwrap_text(latex)
    key = _BRACED_CHARACTER.sub(r"\1\2", key) if "{" in key else key
    return _SPACE.sub("", _SPACE_THAT_SEPARATES.sub("\x00", key)).replace("\x00", " ").rstrip(".")


def _nesting(latex: str) -> tuple[int, int]:
    """The deepest nesting of brackets and of exponents; brackets need not match, since ]1,2[ is an interval."""
    stack: list[bool] = []
    deepest = exponents = 0
    previous = ""
    for char in latex:
        if char in "([{":
            stack.append(previous == "^")
            deepest, exponents = max(deepest, len(stack)), max(exponents, sum(stack))
        elif char in _CLOSERS and stack:
            stack.pop()
        previous = previous if char.isspace() else char
    return deepest, exponents


@_remembered
def refusal(latex: str) -> Status | None:
    """The reason why an expression must not be given to a parser; None if it may."""
    if len(latex) > MAX_CHARS:
        return Status.TOO_LONG
    deepest, exponents = _nesting(latex)
    dangerous = (
        deepest > _MAX_NESTING
        or exponents > _MAX_EXPONENT_NESTING
        or any(pattern.search(latex) for pattern in (_LONG_DIGITS, _BIG_FACTORIAL, _BARE_TOWER, _HUGE_EXPONENT))
        or latex.count("{") != latex.count("}")
    )
    return Status.MALFORMED if dangerous else None


def _is_prose(latex: str) -> bool:
    """Whether a text contains words. A parser would read them as products of letters ("act" = "cat")."""
    bare = _ENVIRONMENT.sub(" ", _CONNECTIVE.sub(" ", latex))
    if _ALL_LETTERS.match(bare):
        return True
    return any(word.casefold() not in _FUNCTIONS for word in _WORD.findall(_COMMAND.sub(" ", bare)))


def _split_unit(latex: str) -> tuple[str, str]:
    r"""Splits an expression into (expression, unit in its final \text{}); the unit is "" if there is none."""
    unit = _TRAILING_TEXT.search(latex)
    if not unit or unit.start() == 0 or not unit.group(1):
        return latex, ""
    return latex[: unit.start()].strip(), f"{unit.group(1)}^{unit.group(2) or 1}"


@_remembered
def _quantity(latex: str) -> numeric.Quantity | None:
    try:
        return numeric.parse_quantity(latex)
    except MalformedAnswer:
        return None


def needs_parser(gold: str) -> bool:
    """Whether a gold in normal form is not a letter, word or number, so that only the worker understands it."""
    return not (_CHOICE_GOLD.match(gold) or _is_prose(_split_unit(gold)[0]) or _quantity(gold))


def _decide_by_form(gold: str, answer: str) -> bool | None:
    """True or False if strings, choices, words or exact numbers settle it; None if they do not."""
    if _key(gold) == _key(answer):
        return True
    (gold_name, gold_value), (answer_name, answer_value) = map(numeric.split_assignment, (gold, answer))
    if gold_name and answer_name and _key(gold_name) != _key(answer_name):
        return False
    if _key(gold_value) == _key(answer_value):
        return True
    if _CHOICE_GOLD.match(text.unwrap_text(gold).strip("() ")):
        return text.choices_match(gold, answer)
    gold_number, answer_number = _quantity(gold), _quantity(answer)
    if gold_number and answer_number:
        return numeric.quantities_match(gold_number, answer_number)
    return None


def decide(gold: str, answer: str) -> Decision:
    """Compare a gold and an answer, both at most `MAX_CHARS` long, as far as that is safe in this process.

    Degree and percent signs are stripped from both before the second comparison (App. D.1).
    """
    gold, answer = canonical(gold), canonical(answer)
    try:
        if (settled := _decide_by_form(gold, answer)) is not None:
            return Decision(settled, Status.OK)
    except MalformedAnswer:
        return Decision(False, Status.MALFORMED)
    gold, answer = numeric.strip_degree_percent(gold), numeric.strip_degree_percent(answer)
    if _key(gold) == _key(answer):
        return Decision(bool(_key(gold)), Status.OK)
    return _decide_by_structure(gold, answer)


def _decide_by_structure(gold: str, answer: str) -> Decision:
    if status := refusal(answer):
        return Decision(False, status)
    if refusal(gold):
        return Decision(False, Status.ERROR)
    (gold, gold_unit), (answer, answer_unit) = _split_unit(gold), _split_unit(answer)
    if gold_unit and answer_unit and gold_unit != answer_unit:
        return Decision(False, Status.OK)
    if _key(gold) == _key(answer):
        return Decision(True, Status.OK)
    if any(_is_prose(latex) or _NUMBER_WITH_BASE.search(latex) for latex in (gold, answer)):
        return Decision(text.strings_match(gold, answer), Status.OK)
    if (settled := exact.compare(gold, answer)) is not None:
        return Decision(settled, Status.OK)
    return Decision(False, Status.OK, pending=(gold, answer))
