r"""Exact numbers with units: read a quantity from text, and compare two of them with Fraction.

Nothing here evaluates text: a fixed grammar (integers, decimals, thousands commas, a/b, \frac{a}{b}, mixed numbers,
1.5e3, 1.5\times10^{3}) is read by anchored patterns. Sizes are capped, so that no number costs more than microseconds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from zppo_jax.rewards import text
from zppo_jax.rewards.verdict import MalformedAnswer

MAX_DIGITS = 64
_MAX_EXPONENT = 1000
# A decimal with six or more digits is read as the rounding of a fraction that does not terminate (0.333333 = 1/3).
_ROUNDING = Fraction(1, 10**6)
_ROUNDING_DIGITS = 6

_UNITS: dict[str, tuple[str, Fraction]] = {
    name: (dimension, Fraction(factor))
    for dimension, table in {
        "length": {
            "nm nanometer nanometre": "1e-9", "mm millimeter millimetre": "0.001", "cm centimeter centimetre": "0.01",
            "dm decimeter decimetre": "0.1", "m meter metre": "1", "km kilometer kilometre": "1000",
            "in inch inches": "0.0254", "ft foot feet": "0.3048", "yd yard": "0.9144", "mi mile": "1609.344",
        },
        "mass": {
            "mg milligram": "1e-6", "g gram": "0.001", "kg kilogram": "1", "t tonne": "1000",
            "lb lbs pound": "0.45359237", "oz ounce": "0.028349523125",
        },
        "time": {
            "ms millisecond": "0.001", "s sec second": "1", "min minute": "60", "h hr hour": "3600", "day": "86400",
            "week": "604800",
        },
        "volume": {"ml milliliter millilitre": "0.001", "l liter litre": "1"},
    }.items()
    for names, factor in table.items()
    for name in names.split()
}  # fmt: skip

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
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
_CURRENCY = re.compile(r"^([+-]?)\s*(?:\\?\$|€|£|¥)\s*")
_ASSIGNED = re.compile(r"^((?:[A-Za-z]|\\[a-z]+)(?:_\{?\w\}?)?)\s*=\s*([^=]+)$")
_FRACTION_SHORT = re.compile(r"\\frac\s*([0-9])\s*([0-9])(?![0-9])")
_DEGREE = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\circ\b|\\degree\b|\\deg\b|degrees?\b")
_PERCENT = re.compile(r"\\?%|\bper\s?cent\b")
_SIZE = re.compile(r"\\(?:left|right|displaystyle|bigl|bigr|big)(?![A-Za-z])")
_BRACED_COMMA = re.compile(r"(?<=[0-9])\{,\}(?=[0-9])")
_SPACED_THOUSANDS = re.compile(r"(?<=[0-9])\\[,!](?=[0-9]{3})")
_SPACE = re.compile(r"\\[,;: ]|\\q?quad(?![A-Za-z])")
_FRACTION_KIND = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_UNIT = re.compile(r"^([A-Za-z]+)(?:\s*\^\s*\{?([1-9])\}?)?(?:\s*/\s*([A-Za-z]+)(?:\s*\^\s*\{?([1-9])\}?)?)?$")


@dataclass(frozen=True)
class Quantity:
    """A number as written (`number`), with what was written after it.

    `unit` is a canonical name ("" for none): units of one known dimension differ by `scale` only. `is_decimal` tells a
    decimal notation from a fraction, `digits` counts its digits.
    """

    number: Fraction
    percent: bool
    unit: str
    scale: Fraction
    is_decimal: bool
    digits: int


def clean_spacing(latex: str) -> str:
    r"""Drop LaTeX for spacing and size (\left, \, and similar); unify \dfrac, and 1{,}000 with 1,000."""
    if "\\" in latex or "{,}" in latex:
        latex = _SIZE.sub("", latex)
        latex = _BRACED_COMMA.sub(",", latex)
        latex = _SPACED_THOUSANDS.sub("", latex).replace(r"\!", "")
        latex = _FRACTION_KIND.sub(r"\\frac", _SPACE.sub(" ", latex))
    return latex.replace("~", " ").strip()


def split_assignment(latex: str) -> tuple[str, str]:
    """Split `x = 5` into ("x", "5"): a lone symbol on the left names the answer. The name is "" if there is none."""
    assigned = _ASSIGNED.match(latex)
    return (assigned.group(1), assigned.group(2).strip()) if assigned else ("", latex)


def strip_degree_percent(latex: str) -> str:
    """Remove degree and percent signs, as the paper's second grading does (App. D.1)."""
    return _PERCENT.sub("", _DEGREE.sub("", latex)).strip()


def _exponent(text_: str | None) -> int:
    if text_ is None:
        return 0
    if len(text_) > 5 or abs(int(text_)) > _MAX_EXPONENT:
        raise MalformedAnswer("the exponent is too large")
    return int(text_)


def _decimal(digits: str) -> Fraction:
    digits = digits.replace(",", "")
    if len(digits) > MAX_DIGITS:
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


def _unit_after(rest: str) -> tuple[str, Fraction]:
    r"""The canonical name of the unit written after a number, and the factor that converts to it.

    Letters after a number may also be variables (5x, 5e): outside \text{} a word of one or two letters must be a known
    unit, and a single letter must stand apart ("5 m") or follow a degree sign. Longer words stand for themselves.
    """
    written = text.unwrap_text(_DEGREE.sub("", rest)).strip()
    if not written:
        return "", Fraction(1)
    parts = _UNIT.match(written)
    if not parts:
        raise MalformedAnswer("what follows the number is not a unit")
    words = [word for word in (parts.group(1), parts.group(3)) if word]
    apart = rest[:1].isspace() or _DEGREE.match(rest)
    for word in words if "\\" not in _DEGREE.sub("", rest) else ():
        if len(word) <= 2 and not (word in _UNITS and (apart or len(word) == 2)) and not _DEGREE.match(rest):
            raise MalformedAnswer("letters after the number are not a known unit")
    name, scale = _unit_power(parts.group(1), int(parts.group(2) or 1))
    if not parts.group(3):
        return name, scale
    below, below_scale = _unit_power(parts.group(3), int(parts.group(4) or 1))
    return f"{name}/{below}", scale / below_scale


def _unit_power(word: str, power: int) -> tuple[str, Fraction]:
    folded = word if len(word) <= 2 else word.casefold()
    singular = folded[:-1] if len(folded) > 3 and folded.endswith("s") else folded
    dimension, factor = _UNITS.get(folded) or _UNITS.get(singular) or (singular, Fraction(1))
    return f"{dimension}^{power}", factor**power


def parse_quantity(source: str) -> Quantity:
    r"""Read one number with an optional percent sign, degree sign, currency sign or unit.

    Raises:
      MalformedAnswer: the text is anything else, or too large to be compared exactly.
    """
    latex = clean_spacing(text.unfence(text.plain(source)))
    _, latex = split_assignment(latex.removesuffix("."))
    latex = _CURRENCY.sub(r"\1", _FRACTION_SHORT.sub(r"\\frac{\1}{\2}", latex))
    match = _NUMBER.match(latex)
    if not match:
        raise MalformedAnswer("not a number")
    number, rest = _magnitude(match), latex[match.end() :]
    if power := _POWER_OF_TEN.match(rest):
        number, rest = number * Fraction(10) ** _exponent(power.group(1) or power.group(2)), rest[power.end() :]
    percent = bool(_PERCENT.search(rest))
    unit, scale = _unit_after(_PERCENT.sub("", rest, count=1) if percent else rest)
    signed = -number if match["sign"] == "-" else number
    digits = len(re.sub(r"[^0-9]", "", match["decimal"] or ""))
    return Quantity(signed, percent, unit, scale, match["decimal"] is not None, digits)


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
    """Whether one is a long decimal and the other a fraction that no decimal equals exactly."""
    decimal, exact = (first, second) if first.is_decimal else (second, first)
    return decimal.is_decimal and decimal.digits >= _ROUNDING_DIGITS and not _terminates(exact.number)


def quantities_match(gold: Quantity, answer: Quantity, tolerance: float = 0.0) -> bool:
    """Whether two quantities are equal, up to `tolerance` relative to the gold (absolute where the gold is 0).

    Units must agree where both have one (5 cm is 50 mm, and is not 5 m); a missing unit is taken from the other, since
    questions often name it. 50% equals both 0.5 and, as in App. D.1, 50.
    """
    if gold.unit and answer.unit and gold.unit != answer.unit:
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
    return quantities_match(parse_quantity(gold), parse_quantity(answer), tolerance)


def integers_match(gold: str, answer: str) -> bool:
    """Types "integer" and "counting": both must be whole (5.0 is 5), without percent, and exactly equal."""
    quantities = parse_quantity(gold), parse_quantity(answer)
    if any(quantity.number.denominator != 1 or quantity.percent for quantity in quantities):
        raise MalformedAnswer("not an integer")
    return quantities_match(*quantities)
