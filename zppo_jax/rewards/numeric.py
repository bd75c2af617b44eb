r"""Exact numbers with units: read a quantity from text, and compare two of them with Fraction.

Nothing here evaluates text: a fixed grammar (integers, decimals, thousands commas, a/b, \frac{a}{b}, mixed numbers,
1.5e3, 1.5\times10^{3}, 5 million, 5 ft 7 in) is read by anchored patterns; what it leaves (2\pi, 10^3) by `exact`.
Sizes are capped, so that no number costs more than microseconds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from zppo_jax.rewards import exact, gates, latex, text, units
from zppo_jax.rewards.verdict import MalformedAnswer

_MAX_EXPONENT = 1000
# A decimal with six or more digits is read as the rounding of a fraction that does not terminate (0.333333 = 1/3).
_ROUNDING = Fraction(1, 10**6)
_ROUNDING_DIGITS = 6

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,3}(?:[ ][0-9]{3})+(?![0-9])|[0-9]+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)"
_NUMBER = re.compile(
    rf"""(?P<sign>[+-]?)\s*(?:
        (?P<whole>[0-9]+)?\s*\\frac\{{\s*(?P<minus>-?)(?P<top>{_DECIMAL})\s*\}}\{{\s*(?P<bottom>{_DECIMAL})\s*\}}
        |(?:(?P<whole2>[0-9]+)\s+)?(?P<top2>{_DECIMAL})\s*/\s*(?P<bottom2>{_DECIMAL})
        |(?P<decimal>{_DECIMAL})(?:[eE]\{{?(?P<exponent>[+-]?[0-9]+)\}}?)?
        )(?![0-9.,/eE]*[0-9])""",
    re.VERBOSE,
)
_POWER_OF_TEN = re.compile(r"\s*(?:\\times|\\cdot|\*|x)\s*10\s*(?:\^|\*\*)\s*(?:\{\s*([+-]?[0-9]+)\s*\}|([+-]?[0-9]+))")
_FRACTION_SHORT = re.compile(r"\\frac\s*([0-9])\s*([0-9])(?![0-9])")
_PAIR = re.compile(rf"\s*(?:,|and\b)?\s*({_DECIMAL})\s*(\^\{{?\\circ\}}?|''|'|\"|[^\W\d_]+)\.?")
_ANGLES = {"'": Fraction(1, 60), "''": Fraction(1, 3600), '"': Fraction(1, 3600)}
_TEMPERATURES = {"celsius^1", "fahrenheit^1"}
_FEET = {"'": "ft", "''": "in", '"': "in"}
# Signs that belong to a whole answer or item: not 50% of x, nor the angle of a sine.
_ENDING_SIGN = re.compile(rf"(?:{units.DEGREE.pattern}|\s*{units.PERCENT.pattern})\s*(?=$|[,;)\]]|\\}})")
_RADIANS = re.compile(r"\\(?:pi|a?(?:rc)?(?:sin|cos|tan|cot|sec|csc))(?![A-Za-z])|\\operatorname\{arc")
_ANGLE = re.compile(rf"([0-9]+(?:\.[0-9]+)?|\([^()]*\)|(?<![A-Za-z\\])[A-Za-z])\s*(?:{units.DEGREE.pattern})")


@dataclass(frozen=True)
class Quantity:
    """A number as written (`number`), with what was written after it.

    `unit` is a canonical name ("" for none): units of one known dimension differ by `scale` only. `is_decimal` tells a
    decimal notation from a fraction, `digits` counts its digits. `is_rounded`: the number is irrational, and `number`
    its binary approximation.
    """

    number: Fraction
    percent: bool = False
    unit: str = ""
    scale: Fraction = Fraction(1)
    is_decimal: bool = False
    digits: int = 0
    is_rounded: bool = False


def strip_degree_percent(source: str) -> str:
    """Removes degree and percent signs, as the paper's second grading does (App. D.1)."""
    return units.PERCENT.sub("", units.DEGREE.sub("", source)).strip()


def without_signs(gold: str, answer: str) -> tuple[str, str] | None:
    r"""Both sides without the degree and percent signs that end them or an item, as 30^\circ in a list of angles.

    Where radians are calculated with, in \sin 30^\circ or beside a multiple of \pi, degrees become radians. None if
    that cannot be, so that the two differ.
    """
    if not any(sign in gold or sign in answer for sign in ("%", "circ", "deg", "percent", "pct", "度")):
        return gold, answer
    if not (_RADIANS.search(gold + answer) and units.DEGREE.search(gold + answer)):
        return _ENDING_SIGN.sub("", gold).strip(), _ENDING_SIGN.sub("", answer).strip()
    one, other = (_ANGLE.sub(r"(\1\\cdot\\frac{\\pi}{180})", side) for side in (gold, answer))
    return None if units.DEGREE.search(one + other) else (one, other)


def _exponent(digits: str | None) -> int:
    if digits is None:
        return 0
    if len(digits) > 5 or abs(int(digits)) > _MAX_EXPONENT:
        raise MalformedAnswer("the exponent is too large")
    return int(digits)


def _decimal(digits: str) -> Fraction:
    digits = digits.replace(",", "").replace(" ", "")
    if len(digits) > latex.MAX_DIGITS:
        raise MalformedAnswer("the number has too many digits")
    return Fraction(digits + "0" if digits.endswith(".") else digits)


def _magnitude(match: re.Match[str]) -> Fraction:
    if (decimal := match["decimal"]) is not None:
        return _decimal(decimal) * Fraction(10) ** _exponent(match["exponent"])
    whole = match["whole"] or match["whole2"]
    bottom = _decimal(match["bottom"] or match["bottom2"])
    if bottom == 0 or (whole and match["minus"]):
        raise MalformedAnswer("not a number: a zero denominator or a mixed number with a negative part")
    fraction = _decimal(match["top"] or match["top2"]) / bottom
    return (_decimal(whole) if whole else 0) + (-fraction if match["minus"] else fraction)


def parse_quantity(source: str, is_number: bool = False) -> Quantity:
    r"""Reads one number with an optional percent sign, degree sign, currency sign, magnitude or unit.

    `is_number`: the text must be a number, so that parentheses around it mean nothing, and an expression may stand for
    its value.

    Raises:
      MalformedAnswer: the text is anything else, or too large to be compared exactly.
    """
    brackets = "{(" if is_number else "{"
    return quantity_of(latex.clean(latex.peel(text.plain(source), brackets)), is_number)


def quantity_of(cleaned: str, is_number: bool = False) -> Quantity:
    """`parse_quantity` for a text that `latex.clean` has cleaned."""
    written = latex.split_name(cleaned.removesuffix("."))[1]
    if "\\" in written or not written[:1].isdigit():
        written = _FRACTION_SHORT.sub(r"\\frac{\1}{\2}", latex.peel(written, "{(" if is_number else "{"))
    if compound := _compound(written):
        return compound
    signed = units.CURRENCY.match(written)
    coin = units.currency(signed[2]) if signed else units.NONE
    written = signed[1] + written[signed.end() :] if signed else written
    match = _NUMBER.match(written)
    try:
        if not match:
            raise MalformedAnswer("not a number")
        return _quantity(match, written, coin)
    except MalformedAnswer:
        if not is_number or gates.refusal(written) or (value := exact.constant(written)) is None:
            raise
        number, is_rational = value
        return Quantity(number, is_rounded=not is_rational)


def _quantity(match: re.Match[str], written: str, coin: units.Unit) -> Quantity:
    number, rest = _magnitude(match), written[match.end() :]
    if power := _POWER_OF_TEN.match(rest):
        number, rest = number * Fraction(10) ** _exponent(power.group(1) or power.group(2)), rest[power.end() :]
    signed, percent, unit = -number if match["sign"] == "-" else number, False, units.NONE
    if rest:
        factor, rest = units.magnitude_after(rest)
        signed, percent = signed * factor if factor > 1 else signed, bool(units.PERCENT.search(rest))
        unit = units.unit_after(units.PERCENT.sub("", rest, count=1) if percent else rest)
    unit = unit if unit.name else coin
    digits = sum(map(str.isdigit, match["decimal"] or ""))
    return Quantity(signed, percent, unit.name, unit.scale, match["decimal"] is not None, digits)


def _compound(written: str) -> Quantity | None:
    r"""Two or more quantities of one dimension, the largest unit first: 5 ft 7 in, 1 h 20 min, 30^\circ 15', 5'7"."""
    if written[-1:].isdigit() or written[-1:] == "":
        return None
    bare = text.unwrap_text(written)
    pairs, end = [], 0
    while pair := _PAIR.match(bare, end):
        pairs.append((pair[1], pair[2]))
        end = pair.end()
    if len(pairs) < 2 or bare[end:].strip():
        return None
    degrees = "circ" in pairs[0][1]
    found = [units.Unit("angle")] if degrees else []
    for _, mark in pairs[len(found) :]:
        if degrees and mark in _ANGLES:
            part = units.Unit("angle", _ANGLES[mark])
        else:
            part = units.of_word(_FEET.get(mark) or mark)
        if part is None or (found and (part.name != found[0].name or part.scale >= found[-1].scale)):
            return None
        found.append(part)
    total = sum((_decimal(number) * part.scale for (number, _), part in zip(pairs, found, strict=True)), Fraction(0))
    return Quantity(total / found[0].scale, unit=units.DEGREES.name if degrees else found[0].name, scale=found[0].scale)


def _close(gold: Fraction, answer: Fraction, tolerance: Fraction) -> bool:
    allowed = tolerance * abs(gold) if gold else tolerance
    return abs(gold - answer) <= allowed


def _terminates(number: Fraction) -> bool:
    rest = number.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def _rounding_allowed(first: Quantity, second: Quantity) -> bool:
    """Whether one is a long decimal and the other a number that no decimal equals exactly."""
    decimal, other = (first, second) if first.is_decimal else (second, first)
    endless = other.is_rounded or not _terminates(other.number)
    return decimal.is_decimal and decimal.digits >= _ROUNDING_DIGITS and endless


def quantities_match(gold: Quantity, answer: Quantity, tolerance: float = 0.0) -> bool:
    """Whether two quantities are equal, up to `tolerance` relative to the gold (absolute where the gold is 0).

    Units must agree where both have one (5 cm is 50 mm, and is not 5 m); a missing unit is taken from the other, since
    questions often name it. 50% equals both 0.5 and, as in App. D.1, 50.
    """
    names = {gold.unit, answer.unit}
    if len(names) > 1 and "" not in names and not (units.DEGREES.name in names and names & _TEMPERATURES):
        return False
    if gold.percent != answer.percent and (answer if gold.percent else gold).unit == units.DEGREES.name:
        return False
    allowed = max(Fraction(tolerance), _ROUNDING if _rounding_allowed(gold, answer) else Fraction(0))
    scales = (gold.scale, answer.scale) if gold.unit and answer.unit else (Fraction(1), Fraction(1))
    as_written = gold.number * scales[0], answer.number * scales[1]
    if _close(*as_written, allowed):
        return True
    by_value = [value / 100 if side.percent else value for value, side in zip(as_written, (gold, answer), strict=True)]
    return _close(by_value[0], by_value[1], allowed)


def numbers_match(gold: str, answer: str, tolerance: float = 0.0) -> bool:
    """Type "numeric". Raises MalformedAnswer if either is not a number."""
    if not 0 <= tolerance < float("inf"):
        raise ValueError(f"tolerance {tolerance!r} is not usable: give a finite number of at least 0")
    return quantities_match(parse_quantity(gold, is_number=True), parse_quantity(answer, is_number=True), tolerance)


def integers_match(gold: str, answer: str) -> bool:
    """Types "integer" and "counting": both must be whole (5.0 is 5), without percent, and exactly equal."""
    quantities = parse_quantity(gold, is_number=True), parse_quantity(answer, is_number=True)
    if any(quantity.number.denominator != 1 or quantity.percent for quantity in quantities):
        raise MalformedAnswer("not an integer")
    return quantities_match(*quantities)
