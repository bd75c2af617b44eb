r"""Words and keyboard notation for what LaTeX has commands for: sin x, 2*pi, x**2, +-3, all real numbers, infinity.

Nothing here changes a value, and prose stays prose: only whole words and whole answers of the lists are replaced.
"""

from __future__ import annotations

import re

from zppo_jax.rewards import text

_FUNCTIONS = (  # noqa: SIM905
    "arcsin arccos arctan arccot sinh cosh tanh sin cos tan cot sec csc log ln exp gcd lcm min max det"
).split()
_LETTERS = "pi|theta|alpha|beta|gamma|lambda|omega|phi|sigma"
# "5 min" and "5 sec" are times: these names need a bracket.
_BARE = re.compile(
    rf"(?<![A-Za-z\\])(?:({'|'.join(name for name in _FUNCTIONS if name not in ('min', 'sec', 'max'))})"
    rf"(?=\s*[0-9_^({{\\]|\s+[a-z](?![A-Za-z]))|(min|max|sec)(?=\s*\()|({_LETTERS})(?![A-Za-z]))"
)
_IN_TEXT = re.compile(
    rf"\\(?:mathrm|text|textrm|operatorname\*?)\s*\{{\s*({'|'.join(_FUNCTIONS)})\s*\}}(?=\s*[0-9A-Za-z_^({{\\])"
)
_ABBREVIATED = re.compile(r"(?<![A-Za-z\\])a(sin|cos|tan)(?=\s*\()")
_ROOT = re.compile(r"(?<![A-Za-z\\])(sqrt|cbrt)\s*(?=\()")
_LETTERS_IN_A_ROW = re.compile(r"[A-Za-z]{2}|[且]")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_ROOTS = {"sqrt": "√", "cbrt": "∛"}
_LG = re.compile(r"\\lg(?![A-Za-z])")
_PLUS_MINUS = re.compile(r"\+\s?/\s?-|^\+-(?=[0-9A-Za-z\\(])")
_UNION = re.compile(r"(?<=[)\]}])\s*U\s*(?=[(\[{\\])")
_BOTH = re.compile(
    r"^([a-zA-Z])\s*(>=?|<=?|\\g(?:e|t|eq)\b|\\l(?:e|t|eq)\b)\s*([^<>=]{1,60}?)\s*(?:\\text\s*\{\s*and\s*\}|\band\b|且)\s*"
    r"\1\s*(>=?|<=?|\\g(?:e|t|eq)\b|\\l(?:e|t|eq)\b)\s*([^<>=]{1,60})$"
)
_JOINT = re.compile(r"\s*(?:[,;、]\s*(?:(?:and|or)\b)?|\b(?:and|or)\b|和|或|及|与)\s*")
_AND_OR = re.compile(r"\b(?:and|or)\b")
_CONJUNCTION = re.compile(r"\b(?:and|or)\b|[、和或及与]")
# Symbols of an element that are a compound in capitals: Co is no CO.
_ELEMENTS = frozenset("co cs cn hf nb pb sc si sn".split())  # noqa: SIM905
_WHOLE = {
    r"\mathbb{R}": ("all real numbers", "all reals", "real numbers", "the set of all real numbers", "any real number"),
    r"\infty": ("infinity", "positive infinity", "+infinity", "inf"),
    r"-\infty": ("-infinity", "negative infinity", "minus infinity"),
    r"\emptyset": (
        *("no solution", "no solutions", "no real solution", "no real solutions", "there is no solution"),
        *("empty set", "the empty set", "无解", "空集"),
    ),
    "does not exist": ("dne", "d.n.e", "the limit does not exist", "不存在"),
}
_MEANING = {words: meaning for meaning, several in _WHOLE.items() for words in several}
_LONGEST = max(map(len, _MEANING))


def typeset(latex: str) -> str:
    """An expression with LaTeX commands instead of words and keyboard notation."""
    if len(latex) <= _LONGEST and (meaning := _MEANING.get(latex.casefold().strip(" ."))):
        return meaning
    latex = latex.replace("**", "^") if "**" in latex else latex
    latex = _PLUS_MINUS.sub(r"\\pm ", latex) if "+" in latex else latex
    latex = _UNION.sub(r"\\cup ", latex) if "U" in latex else latex
    if not _LETTERS_IN_A_ROW.search(latex):
        return latex
    latex = _IN_TEXT.sub(r"\\\1 ", latex) if "{" in latex else latex
    latex = _LG.sub(r"\\log_{10}", latex) if r"\lg" in latex else latex
    if _LETTERS_IN_A_ROW.search(_COMMAND.sub("", latex)):
        latex = _ROOT.sub(lambda match: _ROOTS[match[1]], _ABBREVIATED.sub(r"arc\1", latex))
        latex = _between(_BARE.sub(lambda match: rf"\{match[0]} ", latex))
    return latex


def _between(latex: str) -> str:
    r"""x > 1 and x < 2 as 1 < x < 2; anything else as it is."""
    if not (both := _BOTH.match(latex)):
        return latex
    (sign, bound), (other, end) = (both[2], both[3]), (both[4], both[5])
    if _is_up(sign) == _is_up(other):
        return latex
    if _is_up(sign):
        (sign, bound), (other, end) = (other, end), (sign, bound)
    mirrored = {">": "<", ">=": r"\le ", r"\ge": r"\le ", r"\geq": r"\le ", r"\gt": "<"}[sign]
    return f"{bound} {mirrored} {both[1]} {other} {end}"


def _is_up(sign: str) -> bool:
    """Whether a relation bounds its left side from above."""
    return sign.startswith(("<", r"\l"))


def same(gold: str, answer: str) -> bool:
    """Whether two texts are equal as strings, or list the same; items joined by "and" or "or" may change places."""
    if text.strings_match(gold, answer):
        return not (gold != answer and len(gold) == 2 and gold.casefold() in _ELEMENTS)
    keys = text.string_key(gold), text.string_key(answer)
    joined = [set(_AND_OR.findall(key)) for key in keys]
    if all(joined) and joined[0] != joined[1]:
        return False
    one, other = (_JOINT.split(key) for key in keys)
    if len(one) != len(other) or len(one) < 2 or not all(one + other):
        return False
    return one == other or (any(map(_CONJUNCTION.search, keys)) and sorted(one) == sorted(other))
