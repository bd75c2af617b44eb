r"""Type "math": comparisons that need no computer algebra system, and the gates for those that do.

In order: exact equality after normalisation, letters and words, exact numbers, roots and polynomials (`exact`). An
expression must first pass the gates (`gates`). Only comparisons that
none of these steps settles go to the worker of `pool`; no library parser sees model text in this process.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from zppo_jax.rewards import brackets, exact, forms, gates, numeric, text, units, words
from zppo_jax.rewards import latex as latex_lib
from zppo_jax.rewards.choices import choices_match
from zppo_jax.rewards.verdict import MalformedAnswer, Status

_SHORT_FRACTION = re.compile(r"\\frac\s*([0-9A-Za-z])\s*([0-9A-Za-z])(?![0-9])")
_SHORT_FRACTION_TOP = re.compile(r"\\frac\s*([0-9A-Za-z])\s*\{")
_SHORT_BINOMIAL = re.compile(r"\\[dt]?binom\s*([0-9A-Za-z])\s*([0-9A-Za-z])(?![0-9])")
_SHORT_ACCENT = re.compile(r"\\(vec|hat|bar|overline|mathbf)\s+([A-Za-z])(?![A-Za-z])")
_SHORT_ROOT = re.compile(r"\\sqrt\s*([0-9A-Za-z])")
_SHORT_INDEX = re.compile(r"(?<!^)_\s*([0-9A-Za-z])(?![0-9A-Za-z])")
# 120_3 is a number in base 3, which the parser would read as 120.
_NUMBER_WITH_BASE = re.compile(r"[0-9)}]\s*_")
_DIGITS = re.compile(r"^\s*-?[0-9][0-9,]*(?:\.[0-9]+)?\s*$")
_BRACED_CHARACTER = re.compile(r"([\^_])\{\s*([0-9A-Za-z])\s*\}")
_SPACE = re.compile(r"\s")
_SPACE_THAT_SEPARATES = re.compile(r"(?<=[0-9A-Za-z])\s+(?=[0-9A-Za-z])")
_CHOICE_GOLD = re.compile(r"^[A-J]$")
_WORD = re.compile(r"[^\W\d_]{3,}")
_ALL_LETTERS = re.compile(r"^[^\W\d_][^\W\d_' -]+$")
_LETTER = re.compile(r"[^\W\d_]{2,}")
# Letters between signs are factors, as in 4abc and \frac{abc}{4S}.
_PRODUCT = re.compile(r"(?<![A-Za-z ])[a-z]{3,4}(?![A-Za-z ])")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_TRAILING_TEXT = re.compile(
    r"\\(?:text|textrm|mathrm|mbox)\s*\{[^{}]*(?:\^\{-?[0-9]\}[^{}]*)?\}\s*(?:\^\s*\{?\s*[1-9]\s*\}?)?$"
)
_TRAILING_WORDS = re.compile(r"(?<=[\w})])\s+([A-Za-z]{2,12})(?:\^\{?[1-9]\}?)?$")
_CONNECTIVE = re.compile(r"\\text\s*\{\s*(?:or|and|if|for)\s*\}")
# Between two numbers these words separate, as a comma does.
_SEPARATOR = re.compile(
    r"(?<=[0-9A-Za-z%)}])\s*,?\s*(?:\\text\s*\{\s*(?:or|and)\s*\}|\b(?:or|and)\b|、|和|或)\s*"
    r"(?=[-+0-9.({\\]|[A-Za-z]\s*=)"
)
_IS_CALL = re.compile(r"^[a-zA-Z]\s*\(\s*x\s*\)$")
_AROUND_INFINITY = re.compile(r"[\[\](),<>=]|\\(?:cup|cap|in|lim|int|sum|le|ge|setminus|pm)(?![A-Za-z])")
_ELLIPSIS = re.compile(r"\\[lcd]?dots(?![A-Za-z])|\.{3,}")
_OR = re.compile(r"(?<![A-Za-z\\])or(?![A-Za-z])|或")
_SET_BUILDER = re.compile(r"^\\\{\s*([A-Za-z])\s*(?:\\in\s*\\(?:mathbb\s*\{?R\}?|R)\s*)?[|:]\s*([^|]*)\\\}$")
_EMPTY_SET = re.compile(r"\\(?:varnothing|emptyset|O)(?![A-Za-z])")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{[a-z]+\*?\}")
_FORMULA_IN_WORDS = re.compile(r"[=<>^]|\\(?:frac|sqrt|le|ge|leq|geq|in|neq?)(?![A-Za-z])")
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
    if _DIGITS.match(source):
        return source.strip()
    latex = latex_lib.peel(
        brackets.escaped(latex_lib.clean(latex_lib.peel(brackets.escaped(text.plain(source)), '{"')))
    )
    latex = text.roots(words.typeset(latex_lib.inward(latex.removesuffix(".").rstrip())))
    if any(word in latex for word in ("or", "and", "、", "和", "或")):
        latex = _SEPARATOR.sub(", ", latex)
    if (builder := _SET_BUILDER.match(latex)) and any(sign in builder[2] for sign in "<>\\"):
        latex = builder[2].strip()
    if "\\" in latex or "_" in latex:
        latex = _EMPTY_SET.sub(r"\\emptyset", latex)
        if r"\frac" in latex:
            latex = _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", latex)
            latex = _SHORT_FRACTION_TOP.sub(r"\\frac{\1}{", latex)
        latex = _SHORT_INDEX.sub(r"_{\1}", latex) if "_" in latex else latex
        latex = _SHORT_BINOMIAL.sub(r"\\binom{\1}{\2}", latex) if "binom" in latex else latex
        latex = _SHORT_ACCENT.sub(r"\\\1{\2}", latex)
        latex = _SHORT_ROOT.sub(r"\\sqrt{\1}", latex)
    return latex


@_remembered
def _key(latex: str) -> str:
    """A string key that equal answers share: text commands unwrapped, single-character braces and spaces removed."""
    if latex.isalnum() and latex.isascii():
        return latex
    key = text.unwrap_text(latex)
    key = _BRACED_CHARACTER.sub(r"\1\2", key) if "{" in key else key
    return _SPACE.sub("", _SPACE_THAT_SEPARATES.sub("\x00", key)).replace("\x00", " ").rstrip(".")


def same_text(gold: str, answer: str) -> bool:
    """Whether two expressions of any length are the same but for spaces, sizes and fences. Linear."""
    keys = [_key.__wrapped__(latex_lib.bare(text.plain(side))) for side in (gold, answer)]
    return keys[0] == keys[1]


def _is_prose(latex: str) -> bool:
    """Whether a text contains words. A parser would read them as products of letters ("act" = "cat")."""
    bare = _ENVIRONMENT.sub(" ", _CONNECTIVE.sub(" ", latex))
    if _ALL_LETTERS.match(bare):
        return True
    bare = _PRODUCT.sub(" ", _COMMAND.sub(" ", bare))
    return any(word.casefold() not in _FUNCTIONS for word in _WORD.findall(bare))


def _split_unit(latex: str) -> tuple[str, units.Unit]:
    r"""Splits an expression into (expression, the unit in its final \text{} or known words); `units.NONE` without."""
    written = _TRAILING_TEXT.search(latex) or _TRAILING_WORDS.search(latex)
    if not written or written.start() == 0 or (written.re is _TRAILING_WORDS and not units.known(written[1])):
        return latex, units.NONE
    try:
        unit = units.unit_after(latex[written.start() :])
    except MalformedAnswer:
        return latex, units.NONE
    return (latex[: written.start()].strip(), unit) if unit.name else (latex, unit)


@_remembered
def _quantity(latex: str) -> numeric.Quantity | None:
    try:
        return numeric.quantity_of(latex)
    except MalformedAnswer:
        return None


def needs_parser(gold: str) -> bool:
    """Whether a gold in normal form is not a letter, word or number, so that only the worker understands it."""
    return not (_CHOICE_GOLD.match(gold) or _is_prose(_split_unit(gold)[0]) or _quantity(gold))


def is_sentence(gold: str) -> bool:
    """Whether a gold in normal form has words and relations or formulas, so that it could only be compared as text."""
    bare = _split_unit(gold)[0]
    return _is_prose(bare) and not _quantity(gold) and bool(_FORMULA_IN_WORDS.search(text.unwrap_text(bare)))


def _decide_by_form(gold: str, answer: str) -> bool | None:
    """True or False if strings, choices, words or exact numbers settle it; None if they do not."""
    if _key(gold) == _key(answer):
        return True
    if _CHOICE_GOLD.match(text.unwrap_text(gold).strip("() ")):
        return choices_match(gold, answer)
    gold_number, answer_number = _quantity(gold), _quantity(answer)
    if gold_number and answer_number:
        return numeric.quantities_match(gold_number, answer_number)
    return forms.compare(gold, answer)


def without_names(gold: str, answer: str) -> tuple[str, str] | None:
    """Both sides without `x =`, `f(2) =` or `\\text{Area} =`; None if the two name different things.

    Equations stay: y = 2x is the same as x = y/2 and as 2x - y = 0.
    """
    (gold_name, gold_value), (answer_name, answer_value) = map(latex_lib.split_name, (gold, answer))
    if gold_name and answer_name and _key(gold_name) != _key(answer_name):
        names = {gold_name, answer_name}
        if any("(" in name or "frac" in name or "'" in name for name in names):  # f(x) = 2x may be called y
            return (gold_value, answer_value) if "y" in names and any(_IS_CALL.match(name) for name in names) else None
        gold_words, answer_words = ("text" in name or " " in name for name in (gold_name, answer_name))
        if gold_words != answer_words:  # a symbol and its meaning
            return gold_value, answer_value
        return None if _quantity(gold_value) and _quantity(answer_value) else (gold, answer)
    if (gold_name and "=" in answer_value) or (answer_name and "=" in gold_value):
        return gold, answer
    return gold_value, answer_value


def decide(gold: str, answer: str) -> Decision:
    """Compare a gold and an answer, both at most `gates.MAX_CHARS` long, as far as that is safe in this process.

    Degree and percent signs at the end of an answer or item are left out where no radians are near.
    """
    alternatives = bool(_OR.search(gold) or _OR.search(answer))
    gold, answer = canonical(gold), canonical(answer)
    if _key(gold) == _key(answer):
        return Decision(True, Status.OK)
    unnamed = without_names(gold, answer)
    if unnamed is None:
        return Decision(False, Status.OK)
    # x = 2, 3: the values of one name
    alternatives |= any(
        side != one and brackets.is_list(side) for side, one in zip(unnamed, (gold, answer), strict=True)
    )
    if (unnamed := forms.without_parameter(*unnamed)) is None:
        return Decision(False, Status.OK)
    gold, answer = unnamed
    try:
        if (settled := _decide_by_form(gold, answer)) is not None:
            return Decision(settled, Status.OK)
    except MalformedAnswer:
        return Decision(False, Status.MALFORMED)
    if bool(_ELLIPSIS.search(gold)) != bool(_ELLIPSIS.search(answer)) or gold.count("'") != answer.count("'"):
        return Decision(False, Status.OK)  # a parser reads over dots and primes
    if (pair := forms.proportion(gold, answer)) is None or (pair := brackets.reconcile(*pair, alternatives)) is None:
        return Decision(False, Status.OK)
    if (settled := _decide_by_items(*pair)) is not None:
        return Decision(settled, Status.OK)
    if (pair := numeric.without_signs(*pair)) is None:
        return Decision(False, Status.OK)
    if _key(pair[0]) == _key(pair[1]):
        return Decision(bool(_key(pair[0])), Status.OK)
    return _decide_by_structure(*pair)


def _decide_by_items(gold: str, answer: str) -> bool | None:
    """Whether two lists, sets or points of quantities are the same; None if they are anything else."""
    if "," not in gold or "," not in answer or "=" in gold + answer:
        return None
    one, other = brackets.outline(gold), brackets.outline(answer)
    if not one or not other or not one.kind or {one.kind, other.kind} & {"half", ""}:
        return None
    golds, answers = _quantities(one.items), _quantities(other.items)
    if not golds or not answers:
        return None
    if one.kind == other.kind != "set" and one.kind != "list":
        return len(golds) == len(answers) and all(map(numeric.quantities_match, golds, answers))
    return _same_items(golds, answers) if {one.kind, other.kind} <= {"set", "list"} else None


def _quantities(items: Sequence[str]) -> list[numeric.Quantity]:
    """The items as quantities; nothing if one is something else."""
    found = [quantity for item in items if (quantity := _quantity(item))]
    return found if len(found) == len(items) else []


def _same_items(golds: Sequence[numeric.Quantity], answers: Sequence[numeric.Quantity]) -> bool:
    left = list(answers)
    for gold in golds:
        place = next((place for place, one in enumerate(left) if numeric.quantities_match(gold, one)), None)
        if place is None:
            return False
        del left[place]
    return not left


def surely_equal(one: str, other: str) -> bool:
    """Whether two option texts are the same as strings, numbers or expressions, without the computer algebra system."""
    if text.strings_match(one, other):
        return True
    return max(map(len, (one, other))) <= gates.MAX_CHARS and decide(one, other).correct


def _plain_numbers(gold: str, answer: str) -> tuple[str, str]:
    """Both sides, where 3 million beside an expression is 3000000."""
    found = [_quantity(side) if _LETTER.search(side) and not _COMMAND.search(side) else None for side in (gold, answer)]
    sides = [str(one.number) if one and not one.unit else side for one, side in zip(found, (gold, answer), strict=True)]
    return sides[0], sides[1]


def _in_one_unit(gold: str, answer: str, ratio: Fraction) -> tuple[str, str]:
    """Both sides in one unit, where those of the gold are `ratio` times as large as those of the answer."""
    return (
        (gold, answer) if ratio == 1 else (rf"{ratio.numerator}\cdot({gold})", rf"{ratio.denominator}\cdot({answer})")
    )


def _decide_by_structure(gold: str, answer: str) -> Decision:
    if status := gates.refusal(answer):
        return Decision(False, status)
    if gates.refusal(gold):
        return Decision(False, Status.ERROR)
    (gold, gold_unit), (answer, answer_unit) = _split_unit(gold), _split_unit(answer)
    if gold_unit.name and answer_unit.name:
        if gold_unit.name != answer_unit.name:
            return Decision(False, Status.OK)
        gold, answer = _in_one_unit(gold, answer, gold_unit.scale / answer_unit.scale)
    if _key(gold) == _key(answer):
        return Decision(True, Status.OK)
    gold, answer = _plain_numbers(gold, answer)
    if any(_is_prose(latex) or _NUMBER_WITH_BASE.search(latex) for latex in (gold, answer)):
        return Decision(words.same(gold, answer), Status.OK)
    if (settled := exact.compare(gold, answer)) is not None:
        return Decision(settled, Status.OK)
    if r"\infty" in gold + answer and not _AROUND_INFINITY.search(gold + answer):
        return Decision(False, Status.OK)  # 2\infty and \infty + 1 are no values
    return Decision(False, Status.OK, pending=(gold, answer))
