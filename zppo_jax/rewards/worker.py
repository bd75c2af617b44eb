r"""The child process that compares expressions with a computer algebra system: `python -m zppo_jax.rewards.worker`.

It speaks JSON lines on its standard input and output, so that it needs no pickle, no jax and no import of the parent's
main module. The kernel limits memory and processor time; the parent (`pool`) limits the wall clock.

Comparison is exact before it is numeric: math-verify's own numeric step rounds to six decimals, which takes 1/2^99 for
1/2^98. Expressions are read by math-verify's parser (latex2sympy2_extended), never by sympify or eval.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from typing import Any, TextIO

from zppo_jax.children import limit_memory, limit_processor, replies
from zppo_jax.rewards.child import OUT_OF_MEMORY

_DIGITS = 50
_EXACT = 10.0**-40
# If one side is a decimal, it may be the other rounded to six or more digits.
_ROUNDED = 1e-6
_MAX_SET = 32
_IMAGINARY = "i"
"""The parser's symbol for the imaginary unit; as an index it is as good as any other number."""


def parse(latex: str) -> Any:
    """Parse a LaTeX expression into a sympy object; raises whatever the parser raises."""
    from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig

    config = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none", equations=False
    )
    return latex2sympy(
        normalize_latex(latex, config=config), conversion_config=ConversionConfig(lowercase_symbols=False)
    )


def equal(gold: Any, answer: Any) -> bool:
    """Whether two parsed expressions mean the same. Not symmetric: the gold's form leads (x = 5 also matches 5)."""
    import sympy

    gold, answer = _unwrap(gold, answer)
    if isinstance(gold, sympy.Set) != isinstance(answer, sympy.Set) or _is_region(gold) != _is_region(answer):
        gold, answer = _region(gold), _region(answer)
    if any(side.has(sympy.nan, sympy.zoo) for side in (gold, answer) if isinstance(side, sympy.Basic)):
        return False  # undefined values, such as 3/0, are never equal
    if gold == answer:
        return gold not in (sympy.true, sympy.false)
    if isinstance(gold, sympy.FiniteSet) and isinstance(answer, sympy.FiniteSet):
        return _sets_equal(list(gold.args), list(answer.args))
    if isinstance(gold, sympy.Interval) and isinstance(answer, sympy.Interval):
        return _intervals_equal(gold, answer)
    if any(isinstance(side, sympy.FiniteSet) for side in (gold, answer)) and all(map(_is_collection, (gold, answer))):
        return False  # a point or an interval is not the set of its numbers
    if isinstance(gold, (sympy.Tuple, sympy.MatrixBase)) and isinstance(answer, type(gold)):
        return _sequences_equal(gold, answer)
    if isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr):
        return _expressions_equal(gold, answer)
    if isinstance(gold, sympy.Eq) and isinstance(answer, sympy.Eq):
        return _equations_equal(gold, answer)
    for one, other in ((gold, answer), (answer, gold)):
        if isinstance(one, sympy.Expr) and isinstance(other, sympy.Eq):
            return equal(one, other.lhs) and equal(one, other.rhs)  # 0.5 = 1/2, and not 2x = 0.5
    if _is_inequality(gold) and _is_inequality(answer) and gold.free_symbols == answer.free_symbols:
        return bool(_region(gold) == _region(answer)) or _library_equal(gold, answer)
    if gold in (sympy.true, sympy.false) or answer in (sympy.true, sympy.false):
        return False  # "5 = 6" says nothing: two such statements are not the same answer
    return _library_equal(gold, answer)


def _unwrap(gold: Any, answer: Any) -> tuple[Any, Any]:
    """Drop `x =` where only one side has it or both name the same x; take the element of a set of one."""
    import sympy

    def named(side: Any) -> bool:
        return isinstance(side, sympy.Eq) and isinstance(side.lhs, sympy.Symbol)

    if named(gold) and (not isinstance(answer, sympy.core.relational.Relational)):
        gold = gold.rhs
    elif named(answer) and not isinstance(gold, sympy.core.relational.Relational):
        answer = answer.rhs
    elif named(gold) and named(answer) and gold.lhs == answer.lhs:
        gold, answer = gold.rhs, answer.rhs
    if isinstance(gold, sympy.FiniteSet) != isinstance(answer, sympy.FiniteSet):
        gold, answer = (_single(side) for side in (gold, answer))
    return gold, answer


def _single(side: Any) -> Any:
    import sympy

    if not isinstance(side, sympy.FiniteSet) or len(side.args) != 1:
        return side
    (one,) = side.args
    return side if isinstance(one, sympy.FiniteSet) or one is sympy.S.EmptySet else one


def _is_collection(side: Any) -> bool:
    import sympy

    return isinstance(side, (sympy.FiniteSet, sympy.Interval, sympy.Tuple, sympy.MatrixBase))


def _is_inequality(side: Any) -> bool:
    import sympy

    return isinstance(side, (sympy.And, sympy.Or, sympy.Gt, sympy.Ge, sympy.Lt, sympy.Le))


def _is_region(side: Any) -> bool:
    """Whether a set is one of real numbers, and not a list of inequalities ("x < 2 or x > 3" is read as one)."""
    import sympy

    return isinstance(side, sympy.Set) and not (side.args and all(map(_is_inequality, side.args)))


def _region(side: Any) -> Any:
    """The set of solutions of inequalities in one variable; anything else is returned unchanged."""
    import sympy

    if not _is_region(side) and isinstance(side, sympy.Set):
        solutions = [_region(one) for one in side.args]
        return sympy.Union(*solutions) if all(isinstance(one, sympy.Set) for one in solutions) else side
    if not _is_inequality(side) or len(side.free_symbols) != 1:
        return side
    (symbol,) = side.free_symbols
    return side.subs(symbol, sympy.Dummy(symbol.name, real=True)).as_set()


def _sets_equal(golds: list[Any], answers: list[Any]) -> bool:
    if len(golds) != len(answers) or len(golds) > _MAX_SET:
        return False
    for gold in golds:
        partner = next((answer for answer in answers if equal(gold, answer)), None)
        if partner is None:
            return False
        answers.remove(partner)
    return True


def _intervals_equal(gold: Any, answer: Any) -> bool:
    same_ends = gold.left_open == answer.left_open and gold.right_open == answer.right_open
    return same_ends and equal(gold.start, answer.start) and equal(gold.end, answer.end)


def _sequences_equal(gold: Any, answer: Any) -> bool:
    """Whether two tuples or matrices have the same shape and equal elements."""
    if getattr(gold, "shape", None) != getattr(answer, "shape", None) or len(gold) != len(answer):
        return False
    return all(equal(g, a) for g, a in zip(gold, answer, strict=True))


def _expressions_equal(gold: Any, answer: Any) -> bool:
    import sympy

    if _IMAGINARY in {symbol.name for symbol in gold.free_symbols | answer.free_symbols}:
        gold, answer = (side.subs(sympy.Symbol(_IMAGINARY), sympy.I) for side in (gold, answer))
    if {symbol.name for symbol in gold.free_symbols ^ answer.free_symbols} == {"C", "c"}:  # of an integral
        answer = answer.subs(
            {sympy.Symbol("C"): sympy.Symbol("c"), sympy.Symbol("c"): sympy.Symbol("C")}, simultaneous=True
        )
    if gold.free_symbols != answer.free_symbols and not (gold.free_symbols and answer.free_symbols):
        return bool(sympy.simplify(gold.doit() - answer.doit()) == 0)
    if gold.free_symbols:
        difference = gold.doit() - answer.doit()
        return bool(sympy.expand(difference) == 0 or sympy.simplify(difference) == 0)
    return _constants_equal(gold, answer)


def _equations_equal(gold: Any, answer: Any) -> bool:
    """Whether two equations have equal sides, or differences of their sides in a constant proportion."""
    import sympy

    if equal(gold.lhs, answer.lhs):
        return equal(gold.rhs, answer.rhs)
    one, other = (sympy.expand(side.lhs.doit() - side.rhs.doit()) for side in (gold, answer))
    if one == 0 or not one.free_symbols or one.free_symbols != other.free_symbols:
        return False  # 5 = 6 and 7 = 8 say nothing
    ratio = sympy.simplify(one / other)
    return bool(ratio.is_number and ratio.is_finite and ratio != 0)


def _constants_equal(gold: Any, answer: Any) -> bool:
    """Compare by relative error at 50 digits, so that different tiny or huge numbers differ (1/2004! and 1/2006!)."""
    import sympy

    values = [sympy.N(side.doit(), _DIGITS) for side in (gold, answer)]
    if not all(value.is_number and value.is_finite for value in values):
        return bool(values[0] == values[1])
    size, distance = max(abs(value) for value in values), abs(values[0] - values[1])
    rounded = gold.has(sympy.Float) != answer.has(sympy.Float)
    if size == 0 or bool(distance <= (_ROUNDED if rounded else _EXACT) * size):
        return True
    # A zero written as a sum of irrationals leaves rounding noise: only algebra can tell it from a small number.
    noisy = bool(distance < 10.0**-20) and not all(values)
    return noisy and bool(sympy.simplify(gold.doit() - answer.doit()) == 0)


def _library_equal(gold: Any, answer: Any) -> bool:
    """Compare relations, unions and mixed forms with math-verify. Its timeout is off: the parent kills."""
    from math_verify import verify

    return bool(
        verify(
            gold, answer, float_rounding=_DIGITS, numeric_precision=2 * _DIGITS, timeout_seconds=None,
            allow_set_relation_comp=True,
        )
    )  # fmt: skip


def compare(gold: str, answer: str) -> str:
    """Answer one request: "equal", "different", "malformed" (the answer cannot be read or compared), "gold" (the
    gold cannot).

    Only MemoryError may have another cause than these two texts; every other outcome would repeat.
    """
    try:
        parsed_gold = parse(gold)
    except MemoryError:
        raise
    except Exception:
        return "gold"
    try:
        return "equal" if equal(parsed_gold, parse(answer)) else "different"
    except MemoryError:
        raise
    except Exception:  # also RecursionError, and a form that no rule can compare: the child lives on
        return "malformed"


def warm_up() -> None:
    """Pay for the imports and the parser's tables before the first request."""
    logging.disable(logging.CRITICAL)
    compare(r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}")
    compare("x>1", r"(1,\infty)")


def serve(requests: TextIO, to_parent: TextIO, seconds: float) -> None:
    """Answer requests ([gold, answer] as a JSON line) until the parent closes the pipe."""
    print(json.dumps("ready"), file=to_parent, flush=True)
    for line in requests:
        gold, answer = json.loads(line)
        limit_processor(seconds)
        print(json.dumps(compare(gold, answer)), file=to_parent, flush=True)


def main() -> None:
    seconds, megabytes = float(sys.argv[1]), int(sys.argv[2])
    limit_memory(megabytes)
    to_parent = io.TextIOWrapper(replies(), encoding="utf-8")
    try:
        warm_up()
        serve(sys.stdin, to_parent, seconds)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


if __name__ == "__main__":
    main()
