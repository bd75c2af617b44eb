"""Answers that are places in the image: bounding boxes (grounding) and points (clicking), as JSON.

Coordinates are taken in whatever scale the gold has; boxes are [x1, y1, x2, y2] with 0 <= x1 < x2 and 0 <= y1 < y2.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from typing import Any, NoReturn

from zppo_jax.rewards import latex, text
from zppo_jax.rewards.verdict import MalformedAnswer

Box = tuple[float, float, float, float]
Point = tuple[float, float]

MAX_BOXES = 64
MIN_IOU = 0.5
_BOX_KEYS = ("bbox_2d", "bbox", "box")
_BARE_NUMBERS = re.compile(r"^-?[0-9.]+(?:\s*,\s*-?[0-9.]+)+$")
_COORDINATE_NAME = re.compile(r"(?<![\w\"'])[xy][12]?\s*=\s*(?=-?[0-9])")
_SEVERAL_LISTS = re.compile(r"^\[[^\[\]]*\]\s*,")
_AS_JSON = str.maketrans({"(": "[", ")": "]", "'": '"'})
_CORNERS = ("x1", "y1", "x2", "y2")
_POINT_KEYS = ("point_2d", "point", "coordinate")


def _reject_constant(name: str) -> NoReturn:
    raise MalformedAnswer(f"{name} is not a coordinate")


def _load(source: str) -> Any:
    source = text.unwrap_text(unicodedata.normalize("NFKC", source).strip())
    source = re.sub(r"^```(?:json)?\s*|\s*```$", "", source)
    source = re.sub(r"\\([{}_\[\]])", r"\1", latex.clean(text.unfence(source.strip()))).removesuffix(".")
    source = _COORDINATE_NAME.sub("", source)
    if _BARE_NUMBERS.match(source):
        source = f"[{source}]"
    try:
        return json.loads(source, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        return _load_python(source)


def _load_python(source: str) -> Any:
    """Points and keys as Python writes them: (1, 2), (3, 4) and {'x': 1}."""
    source = source.translate(_AS_JSON)
    try:
        return json.loads(f"[{source}]" if _SEVERAL_LISTS.match(source) else source, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedAnswer("not JSON") from error


def _numbers(value: Any, count: int) -> tuple[float, ...]:
    if not isinstance(value, list) or len(value) != count:
        raise MalformedAnswer(f"not a list of {count} numbers")
    if any(isinstance(item, bool) or not isinstance(item, (int, float)) for item in value):
        raise MalformedAnswer("a coordinate is not a number")
    try:
        numbers = tuple(float(item) for item in value)
    except OverflowError as error:
        raise MalformedAnswer("a coordinate is too large") from error
    if not all(math.isfinite(number) for number in numbers):
        raise MalformedAnswer("a coordinate is not finite")
    return numbers


def _box(value: Any) -> Box:
    if isinstance(value, dict):
        corners = [value.get(key) for key in _CORNERS]
        value = next((value[key] for key in _BOX_KEYS if key in value), corners)
    if _is_pair_of_points(value):
        value = [*value[0], *value[1]]
    x1, y1, x2, y2 = _numbers(value, 4)
    if not (0 <= x1 < x2 and 0 <= y1 < y2):
        raise MalformedAnswer("a box must have 0 <= x1 < x2 and 0 <= y1 < y2")
    return x1, y1, x2, y2


def _is_pair_of_points(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(one, list) and len(one) == 2 for one in value)


def parse_boxes(source: str) -> list[Box]:
    """One box or a list of boxes, each a list of four numbers or an object with "bbox_2d", "bbox" or "box".

    Raises:
      MalformedAnswer: not JSON, NaN or infinite numbers, an empty or reversed box, none or too many boxes.
    """
    value = _load(source)
    several = isinstance(value, list) and value and isinstance(value[0], (list, dict)) and not _is_pair_of_points(value)
    boxes = [_box(item) for item in (value if several else [value])]
    if len(boxes) > MAX_BOXES:
        raise MalformedAnswer(f"more than {MAX_BOXES} boxes")
    return boxes


def parse_point(source: str) -> Point:
    """One point: [x, y], (x, y), or an object with "point_2d", "point" or "x" and "y"."""
    value = _load(source)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        keyed = next((value[key] for key in _POINT_KEYS if key in value), None)
        value = keyed if keyed is not None else [value.get("x"), value.get("y")]
    x, y = _numbers(value, 2)
    return x, y


def iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes, in [0, 1]; 0 where the areas overflow."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    ratio = width * height / (sum(areas) - width * height or math.inf)
    return ratio if math.isfinite(ratio) else 0.0


def _matching_size(edges: list[list[int]]) -> int:
    """The size of a largest one-to-one matching; `edges[i]` are the partners that i may take (Kuhn's algorithm)."""
    partner_of: dict[int, int] = {}

    def place(i: int, tried: set[int]) -> bool:
        for j in edges[i]:
            if j in tried:
                continue
            tried.add(j)
            if j not in partner_of or place(partner_of[j], tried):
                partner_of[j] = i
                return True
        return False

    return sum(place(i, set()) for i in range(len(edges)))


def boxes_match(gold: str, answer: str, min_iou: float = MIN_IOU) -> bool:
    """Type "grounding": as many boxes as the gold, each paired with one gold box at IoU >= `min_iou`."""
    golds, answers = parse_boxes(gold), parse_boxes(answer)
    if len(golds) != len(answers):
        return False
    edges = [[j for j, box in enumerate(answers) if iou(wanted, box) >= min_iou] for wanted in golds]
    return _matching_size(edges) == len(golds)


def click_matches(gold: str, answer: str) -> bool:
    """Type "clicking": the point lies in the gold box (or in one of several), borders included."""
    x, y = parse_point(answer)
    return any(x1 <= x <= x2 and y1 <= y <= y2 for x1, y1, x2, y2 in parse_boxes(gold))
