r"""The gates before any parser: the expressions that no right answer needs, and that could cost it unbounded time."""

from __future__ import annotations

import functools
import re

from zppo_jax.rewards import latex as latex_lib
from zppo_jax.rewards.verdict import Status

MAX_CHARS = 512
_MAX_NESTING = 32
_MAX_EXPONENT_NESTING = 2

_CLOSERS = {")": "(", "]": "[", "}": "{"}
_LONG_DIGITS = re.compile(rf"[0-9]{{{latex_lib.MAX_DIGITS + 1},}}")
_BIG_FACTORIAL = re.compile(r"[0-9]{5,}\s*[)}\]]*\s*!|!\s*!")
# a^b^c without braces is a double superscript in TeX and a tower elsewhere: an answer has no use for it.
_BARE_TOWER = re.compile(r"\^\s*[0-9]+\s*\^|\*\*[^+\-]*\*\*")
_HUGE_EXPONENT = re.compile(r"\^\s*\{?\s*[+-]?(?:[0-9]{6,}|[0-9]{2,}\s*\^)")


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


@functools.lru_cache(8192)
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
