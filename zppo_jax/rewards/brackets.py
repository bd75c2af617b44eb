r"""Which kinds of brackets may mean the same: a point is not a set, and an interval is not the list of its ends.

A parser compares (1,2) with \{1,2\} item by item. Here the outermost brackets of both sides decide first whether the
two can be the same at all, and whether the order of their items counts.
"""

from __future__ import annotations

import itertools
import re
from typing import NamedTuple

_TOKEN = re.compile(r"\\[{}|]|\\(?:langle|rangle)(?![A-Za-z])|[()\[\]{},;]")
_OPENERS = {"(": "round", "[": "square", r"\{": "set", r"\langle": "round", "{": ""}
_CLOSERS = {")": "round", "]": "square", r"\}": "set", r"\rangle": "round", "}": ""}
_RELATION = re.compile(r"[<>]|\\(?:le|ge|leq|geq|lt|gt|leqslant|geqslant|neq?)(?![A-Za-z])")
_NAMED_ITEM = re.compile(r"^\s*([A-Za-z](?:_\{?\w\}?)?)\s*=([^=]+)$")
_NAMES = re.compile(r"^(\([A-Za-z](?:\s*,\s*[A-Za-z])+\s*\))\s*=\s*(\(.*\))$", re.DOTALL)
_ROW_OR_COLUMN = re.compile(r"^\\begin\s*\{[pb]?matrix\}(.*)\\end\s*\{[pb]?matrix\}$", re.DOTALL)
# Operators between sets, several values in one expression, tables, thousands: the parser reads these.
_OTHER = re.compile(
    r"\\(?:cup|cap|setminus|pm|mp|begin|infty|ldots|dots|cdots|in|mathbb|equiv|pmod|bmod|mid)(?![A-Za-z])"
    r"|[|:!]|[0-9],[0-9]{3}(?![0-9])|\.\."
)
_VECTOR = 3
"""From this length on, items in square brackets are a vector and no interval."""


class Outline(NamedTuple):
    """The outermost brackets ("set", "round", "square", "half" open, "list" without any, "" for one value) and the
    items between them."""

    kind: str
    items: tuple[str, ...]


Pair = tuple[str, str]


def outline(latex: str) -> Outline | None:
    """The outline of an expression in normal form; None if its brackets do not match."""
    depth, commas, enclosed = 0, [], True
    first = last = None
    for token in _TOKEN.finditer(latex):
        mark = token[0]
        if mark in _OPENERS:
            first = first or token
            depth += 1
        elif mark in _CLOSERS:
            depth -= 1
            last = token
            if depth < 0:
                return None
            enclosed = enclosed and (depth > 0 or token.end() == len(latex))
        elif mark in ",;":
            commas.append((depth, token.start()))
    if depth:
        return None
    enclosed = enclosed and first is not None and first.start() == 0
    if not (enclosed and first and last and last.end() == len(latex)):
        return _split(latex, "list", [place for level, place in commas if level == 0], 0, len(latex))
    left, right = _OPENERS[first[0]], _CLOSERS[last[0]]
    kind = left if left == right else "half"
    return _split(latex, kind or "list", [place for level, place in commas if level == 1], first.end(), last.start())


def _split(latex: str, kind: str, commas: list[int], start: int, end: int) -> Outline:
    edges = [start - 1, *commas, end]
    items = tuple(latex[left + 1 : right].strip() for left, right in itertools.pairwise(edges))
    return Outline(kind if len(items) > 1 or kind == "set" else "", items)


def is_list(latex: str) -> bool:
    """Whether an expression is several items without brackets around them."""
    return "," in latex and (found := outline(latex)) is not None and found.kind == "list"


def escaped(source: str) -> str:
    r"""{1, 2} as \{1, 2\}: braces around several items are meant as a set; anything else as it is."""
    if source[:1] != "{" or source[-1:] != "}" or "," not in source or _OTHER.search(source):
        return source
    return rf"\{{{source[1:-1]}\}}" if (found := outline(source)) and found.kind == "list" else source


def reconcile(gold: str, answer: str, alternatives: bool = False) -> Pair | None:
    r"""Both sides in brackets that a parser compares rightly; None if brackets of these kinds are never the same.

    A set is a set or a bare list in any order, a point is a point or a bare list in its order, and x=1, y=2 is the
    point of its values in the order of the names. Two items in square brackets are an interval, more are a vector.
    `alternatives`: one side lists several values of one name, or joins them by "or", as no point does.
    """
    if "," not in gold + answer and ";" not in gold + answer:
        return gold, answer
    if r"\begin" in gold or r"\begin" in answer:
        return _vectors(gold, answer)
    gold, answer = _by_name(gold), _by_name(answer)
    one, other = outline(gold), outline(answer)
    if not one or not other or _OTHER.search(gold) or _OTHER.search(answer):
        return gold, answer
    one, other = (_item_of_set(one), _item_of_set(other)) if one.kind != other.kind else (one, other)
    if not one or not other:
        return gold, answer
    return _of_kinds(one, other, gold, answer, alternatives)


def _vectors(gold: str, answer: str) -> Pair:
    """A row or column beside a point as a point; anything else as it is."""
    matches = [_ROW_OR_COLUMN.match(side) for side in (gold, answer)]
    if all(matches):
        return gold, answer
    sides = [_as_point(match[1]) if match else side for match, side in zip(matches, (gold, answer), strict=True)]
    return sides[0] or gold, sides[1] or answer


def _as_point(table: str) -> str:
    rows = [row.strip() for row in table.split(r"\\")]
    if len(rows) > 1 and "&" in table:
        return ""
    return f"({', '.join(rows if len(rows) > 1 else table.split('&'))})"


def _by_name(latex: str) -> str:
    """(x, y) = (1, 2) as x=1, y=2; anything else as it is."""
    match = _NAMES.match(latex)
    sides = [outline(match[1]), outline(match[2])] if match else []
    if len(sides) < 2 or any(not side or side.kind != "round" for side in sides):
        return latex
    names, values = (side.items for side in sides if side)
    return ", ".join(map("{}={}".format, names, values)) if len(names) == len(values) else latex


def _item_of_set(side: Outline) -> Outline | None:
    """The outline of the only item of a set; that of any other expression is unchanged."""
    return outline(side.items[0]) if side.kind == "set" and len(side.items) == 1 else side


def _of_kinds(one: Outline, other: Outline, gold: str, answer: str, alternatives: bool) -> Pair | None:
    kinds = {one.kind, other.kind}
    related = [bool(_RELATION.search(side)) for side in (gold, answer)]
    if any(related):
        return (gold, answer) if all(related) or not kinds & {"list", "set"} else None
    if "" in kinds:  # one value is never several
        return (gold, answer) if len(kinds) == 1 else None
    points = _point(one), _point(other)
    if kinds == {"list"} and bool(_named(one)) != bool(_named(other)) and all(points) and not alternatives:
        return points
    if len(kinds) == 1:
        return gold, answer
    if kinds == {"list", "set"}:
        return (gold, answer) if _one_name(one) and _one_name(other) else None
    ordered = kinds == {"list", "round"} or (not kinds & {"set", "half"} and len(one.items) >= _VECTOR)
    return points if ordered and all(points) and not alternatives else None


def _named(side: Outline) -> list[Pair]:
    r"""(name, value) of each item if all are `name = value`; else nothing."""
    matches = [_NAMED_ITEM.match(item) for item in side.items]
    return [(match[1], match[2].strip()) for match in matches if match] if all(matches) else []


def _one_name(side: Outline) -> bool:
    return len({name for name, _ in _named(side)}) < 2


def _point(side: Outline) -> str:
    """The items as a point: as they stand, or sorted by their different names; "" if that is not clear."""
    named = _named(side)
    if named:
        different = len({name for name, _ in named}) == len(named)
        return f"({', '.join(value for _, value in sorted(named))})" if different else ""
    return "" if any("=" in item for item in side.items) else f"({', '.join(side.items)})"
