r"""Lists: any of several golds, and sequences whose order counts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from zppo_jax.rewards import latex, numeric, text
from zppo_jax.rewards.verdict import MalformedAnswer

_BRACKETS = {"(": ")", "[": "]", "{": "}", "<": ">"}
_ARROWS = re.compile(r"\\(?:to|rightarrow|Rightarrow|longrightarrow)(?![A-Za-z])|->|→|⇒|;|、")
_OTHER_SEPARATORS = (r",\s+", r"\s*,\s*(?:and\s+)?|\s+and\s+|和", r"\s+", r"\s*-\s*", r"\)\s*\(")
"""Separators of a list whose commas do not give the expected number of items."""
_UP = re.compile(r"\\(?:lt|prec)(?![A-Za-z])|<|≺")
_DOWN = re.compile(r"\\(?:gt|succ)(?![A-Za-z])|>|≻")


def golds_of(gold: str | Sequence[str]) -> list[str]:
    """The acceptable golds: a sequence as it is, a JSON list of strings or numbers, or the one string."""
    if not isinstance(gold, str):
        return [str(item) for item in gold]
    if gold.lstrip().startswith("["):
        try:
            items = json.loads(gold, parse_float=str, parse_int=str)
        except (ValueError, RecursionError):
            return [gold]
        if isinstance(items, list) and items and all(isinstance(item, str) for item in items):
            return items
    return [gold]


def items_match(gold: str, answer: str, tolerance: float = 0.0) -> bool:
    """Whether two items match: as numbers if both are numbers, else as strings."""
    try:
        return numeric.numbers_match(gold, answer, tolerance)
    except MalformedAnswer:
        return text.strings_match(gold, answer)


def any_matches(gold: str | Sequence[str], answer: str) -> bool:
    """Type "list_any": the answer equals one of the golds."""
    return any(items_match(one, answer) for one in golds_of(gold))


def _inside(source: str) -> str:
    source = re.sub(r"\\([{}])", r"\1", latex.clean(latex.peel(text.plain(source))))
    source = source.removesuffix(".").strip()
    if source[:1] in _BRACKETS and source.endswith(_BRACKETS[source[0]]) and len(source) > 1:
        return source[1:-1].strip()
    return source


def _split(source: str, separator: str) -> list[str]:
    return [item.strip().removeprefix("and ").strip().strip("\"'") for item in re.split(separator, source)]


def sequence_items(source: str | Sequence[str], length: int | None = None) -> list[str]:
    """Splits a written sequence into its items: in brackets or not, separated by commas, semicolons or arrows.

    `length` resolves "1,000, 2,000" (a comma followed by a space separates), "3 1 2" (a space separates), "A-B-C"
    and "ABC".

    Raises:
      MalformedAnswer: an item is empty.
    """
    if not isinstance(source, str):
        return [str(item) for item in source]
    inside = _DOWN.sub(",", _UP.sub(",", _ARROWS.sub(",", _inside(source))))
    items = _split(inside, ",")
    if length is not None and len(items) != length:
        found = (_split(inside, by) for by in _OTHER_SEPARATORS[: 2 if "," in inside else None])
        letters = list(inside) if inside.isalpha() and inside.isupper() else []
        items = next((other for other in (*found, letters) if len(other) == length and all(other)), items)
    if not all(items):
        raise MalformedAnswer("a list with an empty item")
    return items


def _direction(source: str | Sequence[str]) -> str:
    """The sign that orders a written sequence, "<" or ">"; "" if there is none. Raises MalformedAnswer for both."""
    inside = _ARROWS.sub(",", _inside(source)) if isinstance(source, str) else ""
    signs = "<" * bool(_UP.search(inside)) + ">" * bool(_DOWN.search(inside))
    if len(signs) > 1:
        raise MalformedAnswer("an order that goes up and down")
    return signs


def sequences_match(gold: str | Sequence[str], answer: str, tolerance: float = 0.0) -> bool:
    """Types "ordering" and "number_list": the same items in the same order."""
    gold_items = sequence_items(gold)
    answer_items = sequence_items(answer, len(gold_items))
    if len(answer_items) != len(gold_items):
        return False
    directions = {_direction(side) for side in (gold, answer)}
    if directions == {"<", ">"}:  # C < B < A is A > B > C
        answer_items.reverse()
    return all(items_match(g, a, tolerance) for g, a in zip(gold_items, answer_items, strict=True))
