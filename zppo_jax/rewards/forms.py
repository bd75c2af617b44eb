r"""Answers whose notation says how they are compared, though a parser would calculate with them.

3:00 is a time and no quotient, 2023-05-07 a date and no difference, N_2O a formula and no product. A form is read from
both sides or from none; answers of different forms are different.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from zppo_jax.rewards import text

Form = tuple[object, ...]

_CLOCK = re.compile(r"^([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?\s*(?:([ap])\.?\s*m\.?)?$", re.I)
_DATE = re.compile(r"^([0-9]{1,4})\s*([-/.])\s*([0-9]{1,2})\s*\2\s*([0-9]{1,4})$")
_YEARS = re.compile(r"^([0-9]{4})\s*(?:-|--)\s*([0-9]{4}|[0-9]{2})$")
_PRIMES = re.compile(r"^([0-9]{1,40}(?:\.[0-9]{1,20})?)\s*('{1,2}|\")$")
_CONGRUENCE = re.compile(
    r"^([A-Za-z])\s*\\equiv\s*(-?[0-9]{1,40})\s*\(?\s*\\?[pb]?mod\s*\{?\s*([0-9]{1,40})\s*\}?\s*\)?$"
)
_RATIO_PART = re.compile(r"^[0-9]+(?:\.[0-9]+)?$")
_FORMULA = re.compile(r"^(?=.*[A-Z])(?=.*[A-Za-z)][0-9])[A-Za-z0-9()\[\]]{2,40}(?:\^[0-9]?[+-])?$")
_INDEX = re.compile(r"_\s*(?:\{\s*([0-9A-Za-z]+)\s*\}|([0-9A-Za-z]))")
_SPACE = re.compile(r"\s+")


def compare(gold: str, answer: str) -> bool | None:
    """Whether two answers are the same by their form; None if neither has one, or only one and that may be a number."""
    gold, answer = (text.unwrap_text(side).strip() for side in (gold, answer))
    for read in (_congruence, _clock, _date, _years, _primes, _formula):
        one, other = read(gold), read(answer)
        if one or other:
            return one == other if one and other else _mixed(read, one, gold, answer)
    return _ratios(gold, answer)


def _mixed(read: Callable[[str], Form | None], gold_form: Form | None, gold: str, answer: str) -> bool | None:
    """One side has the form. Years as a difference and a formula as a product are only ruled out as golds."""
    if read is _congruence:
        return None
    if read is _formula:
        return _formula_key(gold) == _formula_key(answer)
    return False if gold_form or read is not _years else None


def _congruence(source: str) -> Form | None:
    r"""x \equiv 3 \pmod{7}: the symbol, the residue and the modulus."""
    match = _CONGRUENCE.match(source)
    return (match[1], int(match[2]) % int(match[3]), int(match[3])) if match and int(match[3]) else None


def _clock(source: str) -> Form | None:
    """Hours and minutes, both of them in their range: 2:3 and 25:00 are ratios."""
    match = _CLOCK.match(source)
    if not match or int(match[1]) > 24 or int(match[2]) > 59 or int(match[3] or 0) > 59:
        return None
    return int(match[1]), int(match[2]), int(match[3] or 0), (match[4] or "").lower()


def _date(source: str) -> Form | None:
    match = _DATE.match(source)
    if not match or not (len(match[1]) == 4 or len(match[4]) in (2, 4)):
        return None
    return match[2], int(match[1]), int(match[3]), int(match[4])


def _years(source: str) -> Form | None:
    match = _YEARS.match(source)
    return (int(match[1]), int(match[2])) if match else None


def _primes(source: str) -> Form | None:
    """Minutes or feet (5'), seconds or inches (5''): a parser would drop the marks."""
    match = _PRIMES.match(source)
    return (Fraction(match[1]), match[2].replace('"', "''")) if match else None


def _formula_key(source: str) -> str:
    return _SPACE.sub("", _INDEX.sub(lambda match: match[1] or match[2], source)).replace("{", "").replace("}", "")


def _formula(source: str) -> Form | None:
    """A capital letter, and a digit behind a letter or a bracket, without an operator: H2O, Fe_2O_3, A12."""
    key = _formula_key(source)
    return (key,) if _FORMULA.match(key) else None


def _ratios(gold: str, answer: str) -> bool | None:
    """Whether two ratios are the same in proportion; None if they are not two."""
    one, other = _parts(gold), _parts(answer)
    if one and other:
        return len(one) == len(other) and all(a * other[0] == b * one[0] for a, b in zip(one, other, strict=True))
    return None


def _parts(source: str) -> list[Fraction] | None:
    """The parts of a ratio of numbers, none of them 0; None if it is anything else."""
    parts = [part.strip() for part in source.split(":")]
    if len(parts) < 2 or not all(_RATIO_PART.match(part) and len(part) <= 64 for part in parts):
        return None
    numbers = [Fraction(part) for part in parts]
    return numbers if all(numbers) else None
