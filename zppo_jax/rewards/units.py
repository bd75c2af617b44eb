r"""Units, magnitudes and currencies behind a number: km/h, m\,s^{-2}, million, 万, °C, $.

A unit is a name and a factor: units of one dimension share the name, and differ by the factor. Unknown words stand for
themselves ("5 apples" are not "5 pears"). All patterns are linear.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from zppo_jax.rewards import text
from zppo_jax.rewards.verdict import MalformedAnswer


class Unit(NamedTuple):
    """A canonical name ("" for none), and the factor that converts to the first unit of that name."""

    name: str
    scale: Fraction = Fraction(1)


NONE = Unit("")

_TABLE: dict[str, dict[str, str]] = {
    "length": {
        "nm nanometer nanometre": "1e-9", "mm millimeter millimetre 毫米": "0.001",
        "cm centimeter centimetre 厘米": "0.01",
        "dm decimeter decimetre 分米": "0.1", "m meter metre 米": "1", "km kilometer kilometre 千米 公里": "1000",
        "in inch inches": "0.0254", "ft foot feet": "0.3048", "yd yard": "0.9144", "mi mile": "1609.344",
    },
    "mass": {
        "mg milligram": "1e-6", "g gram 克": "0.001", "kg kilogram 千克 公斤": "1", "t tonne 吨": "1000",
        "lb lbs pound": "0.45359237", "oz ounce": "0.028349523125",
    },
    "time": {
        "ms millisecond": "0.001", "s sec second 秒": "1", "min minute 分钟": "60", "h hr hour 小时": "3600",
        "day 天": "86400", "week": "604800",
    },
    "volume": {"ml milliliter millilitre 毫升": "0.001", "l liter litre 升": "1"},
    "celsius": {"celsius": "1"}, "fahrenheit": {"fahrenheit": "1"}, "kelvin": {"K kelvin": "1"},
    "dollar": {"$ dollar usd": "1", "cent": "0.01"}, "euro": {"€ eur euro": "1"}, "sterling": {"£ gbp": "1"},
    "yuan": {"元 yuan rmb cny": "1"},
    "ohm": {"Ω ohm": "1", "kΩ kilohm": "1000", "MΩ": "1e6"},
    "farad": {"F farad": "1", "mF": "0.001", "µF": "1e-6", "nF": "1e-9", "pF": "1e-12"},
    "volt": {"V volt": "1", "kV": "1000", "mV": "0.001"}, "ampere": {"A ampere amp": "1", "mA": "0.001"},
    "watt": {"W watt": "1", "kW kilowatt": "1000", "MW": "1e6"}, "joule": {"J joule": "1", "kJ": "1000", "MJ": "1e6"},
    "newton": {"N newton": "1", "kN": "1000"}, "pascal": {"Pa pascal": "1", "kPa": "1000", "MPa": "1e6"},
    "angle": {"rad radian": "1"},
    "hertz": {"Hz hertz": "1", "kHz": "1000", "MHz": "1e6", "GHz": "1e9"}, "mole": {"mol mole": "1"},
}  # fmt: skip
_UNITS: dict[str, Unit] = {
    name: Unit(dimension, Fraction(factor))
    for dimension, table in _TABLE.items()
    for names, factor in table.items()
    for name in names.split()
}
_MAGNITUDES = {
    "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12,
    "万": 10**4, "百万": 10**6, "千万": 10**7, "亿": 10**8, "十亿": 10**9, "万亿": 10**12,
}  # fmt: skip
_MAGNITUDE = re.compile(
    r"^\s*(?:(hundred|thousand|million|billion|trillion|dozen)s?(?![A-Za-z])|(百万|千万|十亿|万亿|万|亿))"
)
# Words that make another number, or none, of what stands before them.
_NO_UNITS = frozenset(
    """
    and or not but to than more less fewer over under about least most half halves third thirds quarter
    quarters fourth fourths fifth fifths sixth sixths eighth eighths ninth ninths tenth tenths hundredth
    hundredths thousandth thousandths double triple times plus minus squared cubed factorial root power
    mod base
    """.split()  # noqa: SIM905
)
DEGREE = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\circ\b|\\degree\b|\\deg\b|degrees?\b|(?<=[0-9])\s*度")
PERCENT = re.compile(r"\\?%|\bper\s?cent(?:ages?)?\b|\bpct\b")
CURRENCY = re.compile(r"^([+-]?)\s*(\\?\$|€|£|¥)\s*")
_SYMBOLS = {r"\Omega": "Ω", r"\ohm": "Ω", r"\mu": "µ", r"\euro": "€", r"\$": "$", r"\cdot": " ", r"\times": " "}
_SYMBOL = re.compile(r"\\(?:Omega|ohm|mu|euro|cdot|times)(?![A-Za-z])\s*|\\\$")
_FACTOR = re.compile(r"\s*(/|\bper\b)?\s*([^\W\d_]+|[$€£])\s*(?:\^\s*(-?[1-9]))?")
# "sq." and "cu." are abbreviations; any other period ends the answer.
_ABBREVIATED = re.compile(r"\b(sq|cu)\.(?=\s)")
_BRACED_POWER = re.compile(r"\^\s*\{\s*(-?[1-9])\s*\}")
_SQUARES = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_MAX_WORDS = 3


def magnitude_after(rest: str) -> tuple[int, str]:
    """The factor that a word such as "million" or 万 stands for at the beginning of a text, and what follows it."""
    bare = text.unwrap_text(rest)
    match = _MAGNITUDE.match(bare)
    whole_word = re.match(r"\s*([^\W\d_]+)", bare)
    if not match or (whole_word and whole_word[1] in _UNITS):
        return 1, rest
    return _MAGNITUDES[match[1] or match[2]], bare[match.end() :]


def unit_after(rest: str) -> Unit:
    r"""The unit in what is written after a number; raises MalformedAnswer if that is anything else.

    Letters after a number may also be variables (5x, 5e): outside \text{} a word of one or two letters must be a known
    unit, and a single letter must stand apart ("5 m") or follow a degree sign. Longer words stand for themselves.
    """
    degree = DEGREE.search(rest)
    marked = "\\" in _SYMBOL.sub("", DEGREE.sub("", rest))
    rest = _BRACED_POWER.sub(r"^\1", _ABBREVIATED.sub(r"\1", rest))
    written = text.unwrap_text(_SYMBOL.sub(lambda match: _SYMBOLS[match[0].strip()], DEGREE.sub("", rest)))
    apart = rest[:1].isspace() or bool(degree)
    if not written.strip():
        return NONE
    factors, end = [], 0
    while end < len(written.rstrip()):
        factor = _FACTOR.match(written, end)
        if not factor or len(factors) > 2 * _MAX_WORDS:
            raise MalformedAnswer("what follows the number is not a unit")
        word = _after_degree(factor[2]) if degree and not factors else factor[2]
        factors.append((word, bool(factor[1]), int(factor[3] or 1)))
        end = factor.end()
    factors = [factor for factor in factors if factor[0].casefold() != "of" or len(factors) < 2]  # "cans of soda"
    for word, *_ in factors:
        _require_unit(word, marked or bool(degree), apart)
    return _product(factors)


def _after_degree(word: str) -> str:
    return {"C": "celsius", "F": "fahrenheit"}.get(word, word)


def _require_unit(word: str, marked: bool, apart: bool) -> None:
    if word.casefold() in _NO_UNITS:
        raise MalformedAnswer(f"{word!r} after the number is not a unit")
    is_known = known(word) is not None
    if not marked and len(word) <= 2 and word.isascii() and not (is_known and (apart or len(word) == 2)):
        raise MalformedAnswer("letters after the number are not a known unit")


def known(word: str) -> Unit | None:
    """A unit of the table by one of its names, in the singular or the plural; None if it is not in it."""
    folded = word if len(word) <= 2 else word.casefold()
    singular = folded[:-1] if len(folded) > 3 and folded.endswith("s") else folded
    return _UNITS.get(word) or _UNITS.get(folded) or _UNITS.get(singular)


def _product(factors: list[tuple[str, bool, int]]) -> Unit:
    """The product of the factors (word, whether it divides, power). Unknown words in a row are one name."""
    powers: dict[str, int] = {}
    scale, pending, phrase = Fraction(1), 1, ""
    for word, divides, power in factors:
        if word.casefold() in _SQUARES:
            pending = _SQUARES[word.casefold()]
            continue
        power, pending = (-1 if divides else 1) * power * pending, 1
        if unit := known(word):
            powers[unit.name] = powers.get(unit.name, 0) + power
            scale *= unit.scale**power
            continue
        name = word.casefold() if len(word) > 2 else word
        name = name[:-1] if len(name) > 3 and name.endswith("s") else name
        if divides or power != 1 or not phrase:
            powers[phrase := name] = power
        else:  # "cans of soda"
            powers[f"{phrase} {name}"] = powers.pop(phrase)
            phrase = f"{phrase} {name}"
    if len(powers) > _MAX_WORDS:
        raise MalformedAnswer("what follows the number is not a unit")
    return Unit(" ".join(f"{name}^{power}" for name, power in sorted(powers.items()) if power), scale)


def currency(symbol: str) -> Unit:
    """The unit of a currency sign before a number; ¥ may be yen or yuan, so it is none."""
    coin = _UNITS.get(symbol.removeprefix("\\"))
    return Unit(f"{coin.name}^1") if coin else NONE
