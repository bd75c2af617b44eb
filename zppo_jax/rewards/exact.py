r"""Expressions that exact arithmetic settles in this process: \frac{\sqrt{3}}{2}, 2\pi, (1,\sqrt{2}), x^2+2x+1.

A small grammar, read the way the worker's parser reads it. Anything outside it, and anything that parser reads in an
unusual way (1/2x, 2\frac{1}{2}x, x2, capital letters), is Unreadable and left to the worker. Two sides are equal if
their exact values are the same, and different if they differ by far more than the worker tolerates.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from zppo_jax.rewards import surds
from zppo_jax.rewards.surds import TooLarge, Value

# The worker's relative tolerance is 1e-40, or 1e-6 where one side is a decimal. Differences between those and these
# are left to it.
_TOLERANCE = 1e-9
_TOLERANCE_OF_DECIMALS = 1e-5

_TOKEN = re.compile(
    r"\s*(?:([0-9]+(?:\.[0-9]+)?|\.[0-9]+)|([a-ce-hj-z]|\\(?:pi|theta|alpha|beta)(?![A-Za-z]))"
    r"|(\\(?:frac|sqrt|cdot|times|infty|leq?|geq?)(?![A-Za-z])|\\[{}]|[-+*/^(){}\[\],<>])|(\S))"
)
# Outside brackets this comma may separate thousands.
_THOUSANDS = re.compile(r"[0-9],[0-9]{3}(?![0-9])")
_MAX_ITEMS = 32
_NUMBER, _SYMBOL, _MARK, _OTHER = 1, 2, 3, 4
_TIMES = (r"\cdot", r"\times", "*")
_OPENERS, _CLOSERS = ("(", "[", r"\{"), (")", "]", r"\}")
_UP = {"<": False, r"\le": True, r"\leq": True}
_DOWN = {">": False, r"\ge": True, r"\geq": True}
"""Relations, and whether the end belongs to the interval."""
_HALF_OPEN = ("(]", "[)")
_INFINITY = surds.symbol(r"\infty")
_INFINITE = {r"\infty": _INFINITY, r"+\infty": _INFINITY, r"-\infty": surds.add({}, _INFINITY, -1)}


class Unreadable(ValueError):
    """The expression is outside this grammar."""


class Form(NamedTuple):
    """A parsed expression: the kind of its brackets ("" for one value, "set" for a list) and its items."""

    kind: str
    items: tuple[Value, ...]
    decimal: bool
    inequality: bool = False


def compare(gold: str, answer: str) -> bool | None:
    """Whether two expressions are equal; None if that is not settled here."""
    try:
        first, second = _form(gold), _form(answer)
        return _settle(first, second)
    except (Unreadable, TooLarge, OverflowError):
        return None


def constant(latex: str) -> tuple[Fraction, bool] | None:
    """The value of an expression without variables, and whether it is rational; else its approximation. None if it is
    not read here."""
    try:
        form = _form(latex)
        if form.kind or form.inequality or surds.has_variable(form.items[0]):
            return None
        if (number := surds.as_rational(form.items[0])) is not None:
            return number, True
        return Fraction(surds.approximate(form.items[0])), False
    except (Unreadable, TooLarge, OverflowError, ValueError):
        return None


def _settle(first: Form, second: Form) -> bool | None:
    if first.kind != second.kind or len(first.items) != len(second.items):
        return None
    # An inequality means an interval only when compared with one; two inequalities may be about different variables.
    inequalities = first.inequality + second.inequality
    if inequalities == 2 or (inequalities == 1 and not _ascend(first, second)):
        return None
    tolerance = _TOLERANCE_OF_DECIMALS if first.decimal or second.decimal else _TOLERANCE
    if first.kind == "set":
        return _settle_sets(first.items, second.items, tolerance)
    pairs = list(zip(first.items, second.items, strict=True))
    if all(one == other for one, other in pairs):
        return True
    # Half-open intervals may be empty, and empty ones are equal whatever their ends are.
    comparable = first.kind not in _HALF_OPEN or _ascend(first, second)
    return False if comparable and any(_differ(one, other, tolerance) for one, other in pairs) else None


def _settle_sets(golds: Sequence[Value], answers: Sequence[Value], tolerance: float) -> bool | None:
    left = list(answers)
    for gold in golds:
        if gold in left:
            left.remove(gold)
    if not left:
        return True
    return False if any(all(_differ(gold, one, tolerance) for one in answers) for gold in golds) else None


def _differ(first: Value, second: Value, tolerance: float) -> bool:
    if _is_infinite(first) or _is_infinite(second):
        return first != second
    return surds.clearly_differ(first, second, tolerance)


def _ascend(*intervals: Form) -> bool:
    """Whether all have two numbers as ends, the left one clearly less; any other interval may be empty."""
    if any(len(one.items) != 2 or any(map(surds.has_variable, one.items)) for one in intervals):
        return False
    ends = [[surds.approximate(item) for item in one.items] for one in intervals]
    return all(left < right and not math.isclose(left, right, rel_tol=1e-6, abs_tol=1e-6) for left, right in ends)


def _is_infinite(value: Value) -> bool:
    return any(term in value for term in _INFINITY)


@functools.lru_cache(4096)
def _form(latex: str) -> Form:
    tokens = [(match.lastindex or _OTHER, match[match.lastindex or 0]) for match in _TOKEN.finditer(latex.strip())]
    if not tokens or any(kind == _OTHER for kind, _ in tokens):
        raise Unreadable
    if tokens[0][1] not in _OPENERS and _THOUSANDS.search(latex):
        raise Unreadable
    decimal = any(kind == _NUMBER and "." in text for kind, text in tokens)
    if any(text in _UP or text in _DOWN for _, text in tokens):
        return Form(*_interval(tokens), decimal, inequality=True)
    kind, parts = _parts([text for _, text in tokens])
    if len(parts) > _MAX_ITEMS or (kind in _HALF_OPEN and len(parts) != 2):
        raise Unreadable
    items = tuple(_item(tokens[start:end]) for start, end in parts)
    return Form(kind, items, decimal)


def _interval(tokens: Sequence[tuple[int, str]]) -> tuple[str, tuple[Value, Value]]:
    r"""The brackets and ends of the interval that `x > a`, `a \le x < b` or a similar inequality allows."""
    places = [place for place, (_, text) in enumerate(tokens) if text in _UP or text in _DOWN]
    marks = [tokens[place][1] for place in places]
    sides = [tokens[s + 1 : e] for s, e in zip([-1, *places], [*places, len(tokens)], strict=True)]
    if all(mark in _DOWN for mark in marks):
        marks, sides = marks[::-1], sides[::-1]
    elif not all(mark in _UP for mark in marks):
        raise Unreadable
    closed = [(_UP | _DOWN)[mark] for mark in marks]
    shape = [len(side) == 1 and side[0][0] == _SYMBOL and side[0][1] not in surds.CONSTANTS for side in sides]
    if shape == [True, False]:
        return "(" + ")]"[closed[0]], (_INFINITE[r"-\infty"], _item(sides[1]))
    if shape == [False, True]:
        return "(["[closed[0]] + ")", (_item(sides[0]), _INFINITY)
    if shape == [False, True, False]:
        return "(["[closed[0]] + ")]"[closed[1]], (_item(sides[0]), _item(sides[2]))
    raise Unreadable


def _parts(texts: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """The kind of the outer brackets, and where each comma-separated item begins and ends."""
    depths, depth = [], 0
    for text in texts:
        depth -= text in _CLOSERS
        depths.append(depth)
        depth += text in _OPENERS
    enclosed = len(texts) > 2 and texts[0] in _OPENERS and texts[-1] in _CLOSERS and min(depths[1:-1]) > 0
    level = 1 if enclosed else 0
    commas = [place for place, text in enumerate(texts) if text == "," and depths[place] == level]
    if not commas and (not enclosed or texts[0] == "("):
        return "", [(0, len(texts))]
    kind = texts[0] + texts[-1] if enclosed else ""
    edges = [level - 1, *commas, len(texts) - level]
    return ("set" if kind in ("", r"\{\}") else kind), list(zip((e + 1 for e in edges), edges[1:], strict=False))


def _item(tokens: Sequence[tuple[int, str]]) -> Value:
    if "".join(text for _, text in tokens) in _INFINITE:
        return _INFINITE["".join(text for _, text in tokens)]
    reader = _Reader(tokens)
    value = reader.sum()
    if reader.text:
        raise Unreadable
    return value


class _Reader:
    """Reads one value from tokens by recursive descent; the gates of `gates.refusal` bound the depth."""

    def __init__(self, tokens: Sequence[tuple[int, str]]):
        self._tokens = [*tokens, (0, "")]
        self._place = 0

    @property
    def kind(self) -> int:
        return self._tokens[self._place][0]

    @property
    def text(self) -> str:
        return self._tokens[self._place][1]

    def _take(self, *expected: str) -> str:
        text = self.text
        if expected and text not in expected:
            raise Unreadable
        self._place += 1
        return text

    def sum(self) -> Value:
        """Reads a sum of products, which may begin with a sign."""
        sign = -1 if self.text == "-" else 1
        if self.text in ("+", "-"):
            self._take()
        total = surds.add({}, self._product(), sign)
        while self.text in ("+", "-"):
            sign = -1 if self._take() == "-" else 1
            total = surds.add(total, self._product(), sign)
        return total

    def _product(self) -> Value:
        value = self._power()
        while True:
            if self.text in _TIMES:
                self._take()
                value = surds.multiply(value, self._power())
            elif self.text == "/":
                self._take()
                value = surds.divide(value, self._power())
                # The worker's parser reads 1/2x as 1/(2x): ambiguous, so this parser does not decide it.
                if self._begins_factor():
                    raise Unreadable
            elif self._begins_factor():
                value = surds.multiply(value, self._factor_without_sign())
            else:
                return value

    def _factor_without_sign(self) -> Value:
        r"""Reads a factor right after another: not x2, 2 3, a mixed number (2\frac{1}{2}) or a call (f(3))."""
        kind, before = self._tokens[self._place - 1]
        mixed = self.text == r"\frac" and (kind == _NUMBER or before == ")")
        if self.kind == _NUMBER or mixed:
            raise Unreadable
        grouped = self.text == "("
        value = self._power()
        if grouped and (len(value) < 2 or (kind != _NUMBER and not surds.has_variable(value))):
            raise Unreadable
        return value

    def _begins_factor(self) -> bool:
        return self.kind in (_NUMBER, _SYMBOL) or self.text in (r"\frac", r"\sqrt", "(")

    def _power(self) -> Value:
        base = self._atom()
        if self.text != "^":
            return base
        self._take()
        if braced := self.text == "{":
            self._take()
        sign = -1 if braced and self.text == "-" and self._take() else 1
        if self.kind != _NUMBER or not self.text.isdigit() or len(self.text) > 3:
            raise Unreadable
        exponent = sign * int(self._take())
        if braced:
            self._take("}")
        if self.text == "^":
            raise Unreadable
        return surds.power(base, exponent)

    def _atom(self) -> Value:
        kind, text = self.kind, self._take()
        if kind == _NUMBER:
            return surds.rational(Fraction(text))
        if kind == _SYMBOL:
            return surds.symbol(text)
        if text == "(":
            value = self.sum()
            self._take(")")
            return value
        if text == r"\frac":
            return surds.divide(self._argument(), self._argument())
        if text == r"\sqrt":
            return surds.square_root(self._argument())
        raise Unreadable

    def _argument(self) -> Value:
        self._take("{")
        value = self.sum()
        self._take("}")
        return value
