r"""Exact arithmetic for short answers: sums of rational multiples of square roots, \pi, e and powers of variables.

A value is a mapping from (radicand, powers of symbols) to a Fraction, where radicands are positive and have no square
factor. Square roots of different such radicands are independent over the rationals, so two values without e or \pi are
the same number exactly when their mappings are the same; with them, the same mapping still means the same number.
Sizes are capped: a value that grows beyond them raises TooLarge.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from fractions import Fraction

Powers = tuple[tuple[str, int], ...]
Term = tuple[int, Powers]
Value = Mapping[Term, Fraction]

CONSTANTS = {r"\pi": math.pi, "e": math.e, r"\infty": math.inf}
"""Symbols that stand for numbers; all others are variables. The reader keeps infinity out of sums."""

_ONE: Term = (1, ())
_MAX_TERMS = 16
_MAX_BITS = 1024
_MAX_POWER = 64
_MAX_POWER_OF_SUM = 12
_MAX_RADICAND = 10**7


class TooLarge(ArithmeticError):
    """The result is too large for this arithmetic, or it cannot represent it."""


def rational(number: Fraction) -> Value:
    """A number as a value."""
    return {_ONE: number} if number else {}


def symbol(name: str) -> Value:
    """A variable or constant as a value."""
    return {(1, ((name, 1),)): Fraction(1)}


def add(first: Value, second: Value, sign: int = 1) -> Value:
    """first + sign * second."""
    total = dict(first)
    for term, number in second.items():
        total[term] = total.get(term, Fraction(0)) + sign * number
    return _check(total)


def multiply(first: Value, second: Value) -> Value:
    """The product, term by term: roots of a and b give g times the root of ab / g^2, for g = gcd(a, b)."""
    if len(first) * len(second) > _MAX_TERMS**2:
        raise TooLarge
    product: dict[Term, Fraction] = {}
    for (radicand, powers), number in first.items():
        for (other_radicand, other_powers), other in second.items():
            shared = math.gcd(radicand, other_radicand)
            term = (radicand * other_radicand // shared**2, _merged(powers, other_powers))
            product[term] = product.get(term, Fraction(0)) + number * other * shared
    return _check(product)


def divide(first: Value, second: Value) -> Value:
    """first / second, where second has one term, or is a sum of two square roots of rationals."""
    if len(second) == 2 and all(not powers for _, powers in second):
        (kept, number), (turned, other) = second.items()
        conjugate = {kept: number, turned: -other}
        return divide(multiply(first, conjugate), multiply(second, conjugate))
    if len(second) != 1:
        raise TooLarge
    (((radicand, powers), number),) = second.items()
    inverse = {(radicand, tuple((name, -power) for name, power in powers)): 1 / (number * radicand)}
    return multiply(first, inverse)


def power(base: Value, exponent: int) -> Value:
    """base ** exponent for a small whole exponent."""
    if abs(exponent) > (_MAX_POWER if len(base) < 2 else _MAX_POWER_OF_SUM):
        raise TooLarge
    factor = base if exponent >= 0 else divide(rational(Fraction(1)), base)
    result = rational(Fraction(1))
    for _ in range(abs(exponent)):
        result = multiply(result, factor)
    return result


def square_root(value: Value) -> Value:
    """The root of a rational number of at least 0."""
    if not value:
        return value
    number = value.get(_ONE)
    if number is None or len(value) > 1 or number < 0:
        raise TooLarge
    outside, inside = _square_part(number.numerator * number.denominator)
    return {(inside, ()): Fraction(outside, number.denominator)}


@functools.lru_cache(4096)
def _square_part(number: int) -> tuple[int, int]:
    """(a, b) with number = a^2 b, where b has no square factor."""
    if number > _MAX_RADICAND:
        raise TooLarge
    outside, inside, factor = 1, number, 2
    while factor * factor <= inside:
        while inside % factor**2 == 0:
            inside //= factor**2
            outside *= factor
        factor += 1
    return outside, inside


def _merged(first: Powers, second: Powers) -> Powers:
    if not second or not first:
        return first or second
    powers = dict(first)
    for name, exponent in second:
        powers[name] = powers.get(name, 0) + exponent
    if any(abs(exponent) > _MAX_POWER for exponent in powers.values()):
        raise TooLarge
    return tuple(sorted((name, exponent) for name, exponent in powers.items() if exponent))


def _check(value: dict[Term, Fraction]) -> Value:
    value = {term: number for term, number in value.items() if number}
    if len(value) > _MAX_TERMS:
        raise TooLarge
    for number in value.values():
        if number.numerator.bit_length() > _MAX_BITS or number.denominator.bit_length() > _MAX_BITS:
            raise TooLarge
    return value


def as_rational(value: Value) -> Fraction | None:
    """The number that a value is, if it is rational by its form."""
    return value.get(_ONE, Fraction(0)) if value.keys() <= {_ONE} else None


def has_variable(value: Value) -> bool:
    """Whether a value contains a symbol that does not stand for a number."""
    return any(name not in CONSTANTS for _, powers in value for name, _ in powers)


def clearly_differ(first: Value, second: Value, tolerance: float) -> bool:
    """Whether the coefficients of some product of variables differ by more than `tolerance` of their size.

    The size is the sum of the absolute terms, since floating-point rounding is relative to it. A coefficient that is
    too large for a float is not a clear difference.
    """
    try:
        difference, sizes = _coefficients(add(first, second, -1)), [_coefficients(first), _coefficients(second)]
    except OverflowError:
        return False
    return any(
        abs(number) > tolerance * max(size.get(variables, (0.0, 0.0))[1] for size in sizes)
        for variables, (number, _) in difference.items()
    )


def approximate(value: Value) -> float:
    """A value without variables in floating point. Raises OverflowError."""
    return _coefficients(value).get((), (0.0, 0.0))[0]


def _coefficients(value: Value) -> dict[Powers, tuple[float, float]]:
    """The coefficient of each product of variables, and the sum of the absolute terms of that coefficient."""
    found: dict[Powers, tuple[float, float]] = {}
    for (radicand, powers), number in value.items():
        term = float(number) * math.sqrt(radicand)
        for name, exponent in powers:
            term *= CONSTANTS[name] ** exponent if name in CONSTANTS else 1.0
        variables = tuple(one for one in powers if one[0] not in CONSTANTS)
        total, size = found.get(variables, (0.0, 0.0))
        found[variables] = (total + term, size + abs(term))
    return found
