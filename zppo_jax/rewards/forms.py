r"""Answers whose notation says how they are compared, though a parser would calculate with them.

3:00 is a time and no quotient, 2023-05-07 a date and no difference, N_2O a formula and no product. A form is read from
both sides or from none; answers of different forms are different.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from zppo_jax.rewards import dates, text

Form = tuple[object, ...]

_YEARS = re.compile(r"^([0-9]{4})\s*(?:-|--)\s*([0-9]{4}|[0-9]{2})$")
_PRIMES = re.compile(r"^([0-9]{1,40}(?:\.[0-9]{1,20})?)\s*('{1,2}|\")$")
_CONGRUENCE = re.compile(
    r"^([A-Za-z])\s*\\equiv\s*(-?[0-9]{1,40})\s*\(?\s*\\?[pb]?mod\s*\{?\s*([0-9]{1,40})\s*\}?\s*\)?$"
)
_RATIO = re.compile(r"^[0-9]{1,9}(?::[0-9]{1,9}){2,9}$")
_RATIO_SIGN = re.compile(r"(?<=[0-9)}])\s*\bto\b\s*(?=[0-9(\\])")
_NO_RATIO = re.compile(r"[=<>,;|]|\\[{}]|\\(?:to|mid|in)(?![A-Za-z])|[A-Za-z]{3,}:|:\s*[A-Za-z]{3,}")
_FAMILY = re.compile(
    r"^(?P<member>.+?)\s*[,;]?\s*[(（]?\s*(?:\\text\s*\{\s*(?:where|for|with)\s*\})?\s*([a-z])\s*\\in\s*"
    r"\\math(?:bb|bf|rm)\s*\{?\s*([ZN])\s*\}?((?:[\^_]\{?[+*0-9]\}?)?)\s*[)）]?$"
)
_FORMULA = re.compile(r"^(?=.*[A-Z])(?=.*[A-Za-z)][0-9])[A-Za-z0-9()\[\]]{2,40}(?:\^[0-9]?[+-])?$")
_INDEX = re.compile(r"_\s*(?:\{\s*([0-9A-Za-z]+)\s*\}|([0-9A-Za-z]))")
_SPACE = re.compile(r"\s+")


def compare(gold: str, answer: str) -> bool | None:
    """Whether two answers are the same by their form; None if neither has one, or only one and that may be a number.

    Ratios are not forms: `proportion` makes them expressions.
    """
    gold, answer = (text.unwrap_text(side).strip() for side in (gold, answer))
    for read in (_congruence, dates.time_of, dates.date_of, _years, _primes, _formula):
        one, other = read(gold), read(answer)
        if one or other:
            return one == other if one and other else _mixed(read, one, gold, answer)
    return None


def _mixed(read: Callable[[str], Form | None], gold_form: Form | None, gold: str, answer: str) -> bool | None:
    """One side has the form. Years as a difference and a formula as a product are only ruled out as golds."""
    is_ratio = read is dates.time_of and all(map(_RATIO.match, (gold, answer)))  # 10:12:18 is one beside 5:6:9
    if read is _congruence or is_ratio:
        return None
    if read is _formula:
        return _formula_key(gold) == _formula_key(answer)
    return False if gold_form or read is not _years else None


def _congruence(source: str) -> Form | None:
    r"""x \equiv 3 \pmod{7}: the symbol, the residue and the modulus."""
    match = _CONGRUENCE.match(source)
    return (match[1], int(match[2]) % int(match[3]), int(match[3])) if match and int(match[3]) else None


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


def without_parameter(gold: str, answer: str) -> tuple[str, str] | None:
    r"""Both sides without `k \in \mathbb{Z}` behind them, the parameter named as in the gold; None if the two range
    over different sets."""
    if r"\in" not in gold and r"\in" not in answer:
        return gold, answer
    one, other = _FAMILY.match(gold), _FAMILY.match(answer)
    if one and other and one.group(3, 4) != other.group(3, 4):
        return None
    members = [match["member"] if match else side for match, side in ((one, gold), (other, answer))]
    if one and other and one[2] != other[2]:
        members[1] = re.sub(rf"(?<![A-Za-z\\]){other[2]}(?![A-Za-z])", one[2], members[1])
    return members[0], members[1]


def proportion(gold: str, answer: str) -> tuple[str, str] | None:
    """Ratios as what a parser compares: of two parts as a quotient, of more as a point. None if they differ anyway."""
    if ":" not in gold and ":" not in answer:
        return gold, answer
    one, other = _parts(gold), _parts(answer)
    if not one or not other or max(len(one), len(other)) == 1:
        return gold, answer
    if len(one) != len(other) and max(len(one), len(other)) > 2:
        return None
    return _as_point(one), _as_point(other)


def _parts(source: str) -> list[str]:
    """The parts of a ratio, one part for any other expression; nothing if the colon means something else."""
    source = _RATIO_SIGN.sub(":", text.unwrap_text(source))
    return [] if _NO_RATIO.search(source) else [part.strip() for part in source.split(":")]


def _as_point(parts: list[str]) -> str:
    if len(parts) == 1:
        return parts[0]
    quotients = [rf"\frac{{{part}}}{{{parts[0]}}}" for part in parts[1:]]
    return f"({', '.join(quotients)})" if len(parts) > 2 else rf"\frac{{{parts[0]}}}{{{parts[1]}}}"
