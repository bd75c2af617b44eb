r"""Units, magnitudes and currencies behind a number: km/h, m\,s^{-2}, million, 万, °C, $.

A unit is a name and a factor: units of one dimension share the name, and differ by the factor. Unknown words stand for
themselves ("5 apples" are not "5 pears"). All patterns are linear.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

from zppo_jax.rewards import text
from zppo_jax.rewards.unit_table import MAGNITUDES, PRODUCTS, UNITS
from zppo_jax.rewards.verdict import MalformedAnswer


class Unit(NamedTuple):
    """A canonical name ("" for none), and the factor that converts to the first unit of that name."""

    name: str
    scale: Fraction = Fraction(1)


NONE = Unit("")
DEGREES = Unit("degree")
"""A degree sign alone: of an angle or a temperature."""

Factor = tuple[str, bool, int]
"""A word, whether it divides, and its power."""

_UNITS: dict[str, Unit] = {
    name: Unit(dimension, Fraction(factor))
    for dimension, table in UNITS.items()
    for names, factor in table.items()
    for name in names.split()
}
_MAGNITUDE = re.compile(
    r"^\s*(?:(hundred|thousand|million|billion|trillion|dozen|lakh|crore)s?(?![A-Za-z])|(百万|千万|十亿|万亿|百|千|万|亿))",
    re.I,
)
# Words that make another number, or none, of what stands before them.
_NO_UNITS = frozenset(
    """
    and or not but to than more less fewer over under about least most half halves third thirds quarter
    quarters fourth fourths fifth fifths sixth sixths eighth eighths ninth ninths tenth tenths hundredth
    hundredths thousandth thousandths double triple times plus minus squared cubed factorial root power
    mod base below above before after off short negative zero versus vs by through until till without except
    wrong incorrect false tens
    """.split()  # noqa: SIM905
)
DEGREE = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\circ\b|\\degree\b|\\deg\b|degrees?\b|(?<=[0-9])\s*度")
PERCENT = re.compile(r"\\?%|\bper\s?cent(?:ages?)?\b|\bpct\b")
CURRENCY = re.compile(r"^([+-]?)\s*(US\\?\$|\\?\$|€|£|¥|₹|(?:USD|EUR|GBP|RMB|CNY|INR|Rs\.?)(?=\s))\s*")
_SYMBOLS = {r"\Omega": "Ω", r"\ohm": "Ω", r"\mu": "µ", r"\euro": "€", r"\$": "$", r"\cdot": " ", r"\times": " "}
_SYMBOL = re.compile(r"\\(?:Omega|ohm|mu|euro|cdot|times)(?![A-Za-z])\s*|\\\$")
_FACTOR = re.compile(r"\s*(/|\bper\b)?\s*([^\W\d_]+|[$€£¢₹])\s*(?:\^\s*(-?[1-9])|(?<=m|t|n)([23])(?![0-9]))?")
# "sq." and "cu." are abbreviations; any other period ends the answer.
_ABBREVIATED = re.compile(r"\b(sq|cu)\.(?=\s)")
_BRACED_POWER = re.compile(r"\^\s*\{\s*(-?[1-9])\s*\}")
_SQUARES = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_MAX_WORDS = 3


def magnitude_after(rest: str) -> tuple[int, str]:
    """The factor that a word such as "million" or 万 stands for at the beginning of a text, and what follows it."""
    factor, bare = 1, text.unwrap_text(rest)
    while match := _MAGNITUDE.match(bare):
        whole_word = re.match(r"\s*([^\W\d_]+)", bare)
        if whole_word and whole_word[1] in _UNITS:  # 千米
            break
        factor, bare = factor * MAGNITUDES[(match[1] or match[2]).lower()], bare[match.end() :]
    return (factor, bare) if factor > 1 else (1, rest)


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
        return DEGREES if degree else NONE
    factors, end = [], 0
    while end < len(written.rstrip()):
        factor = _FACTOR.match(written, end)
        if not factor or len(factors) > 2 * _MAX_WORDS:
            raise MalformedAnswer("what follows the number is not a unit")
        word = _after_degree(factor[2]) if degree and not factors else factor[2]
        factors.append((word, bool(factor[1]), int(factor[3] or factor[4] or 1)))
        end, apart = factor.end(), apart or bool(factor[4])
    factors = [factor for factor in factors if factor[0].casefold() != "of" or len(factors) < 2]  # "cans of soda"
    for word, *_ in factors:
        _require_unit(word, marked or bool(degree), apart)
    return _product(factors)


def _after_degree(word: str) -> str:
    return {"C": "celsius", "F": "fahrenheit"}.get(word, word)


def _require_unit(word: str, marked: bool, apart: bool) -> None:
    if word.casefold() in _NO_UNITS:
        raise MalformedAnswer(f"{word!r} after the number is not a unit")
    is_known = known(word) is not None or bool(_name_in(word, PRODUCTS)) or word in _SQUARES
    apart = apart or word in PRODUCTS
    if not marked and len(word) <= 2 and word.isascii() and not (is_known and (apart or len(word) == 2)):
        raise MalformedAnswer("letters after the number are not a known unit")


def known(word: str) -> Unit | None:
    """A unit of the table by one of its names, in the singular or the plural; None if it is not in it."""
    return _UNITS.get(name) if (name := _name_in(word, _UNITS)) else None


def of_word(word: str) -> Unit | None:
    """The unit that a word alone stands for, as `unit_after` reads it; None if it is not in the tables."""
    return _product([(word, False, 1)]) if known(word) or _name_in(word, PRODUCTS) else None


def _name_in(word: str, table: Mapping[str, object]) -> str:
    """The name under which a table has a word; "" if it has not. The case of two letters counts: mW is not MW."""
    folded = word if len(word) <= 2 and word != "KG" else word.casefold()
    singular = folded[:-1] if len(folded) > 2 and folded.endswith("s") else folded
    return next((name for name in (word, folded, singular) if name in table), "")


def _expanded(factors: list[Factor]) -> list[Factor]:
    """The factors, with products of units such as mph and mL as their parts; ms^{-1} is m/s."""
    parts: list[Factor] = []
    for word, divides, power in factors:
        if name := _name_in(word, PRODUCTS):
            sign = -1 if divides else 1
            parts += [(unit, False, sign * power * exponent) for unit, exponent in PRODUCTS[name]]
        elif word == "ms" and power < 0:
            parts += [("m", divides, 1), ("s", False, power)]
        else:
            parts.append((word, divides, power))
    return parts


def _product(factors: list[Factor]) -> Unit:
    """The product of the factors (word, whether it divides, power). Unknown words in a row are one name."""
    powers: dict[str, int] = {}
    scale, pending, phrase = Fraction(1), 1, ""
    for word, divides, power in _expanded(factors):
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
    coin = known(symbol.removeprefix("US").removeprefix("\\").removesuffix(".").lower())
    return Unit(f"{coin.name}^1") if coin else NONE
