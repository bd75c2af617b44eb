"""Questions from the rows of a table: texts, images, videos, golds and the scorer's options, each checked.

What a row must hold, by the columns that `data.columns` names: a question; its gold answer; images and videos, each
none, one, or a list. A text has a placeholder `<image>` or `<video>` for each, or none at all: then they come first.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from zppo_jax.config.schema import ColumnsConfig
from zppo_jax.data.media_values import MediaError, files_of
from zppo_jax.data.tables.jsonl import parse_json
from zppo_jax.processor import Clip, Picture
from zppo_jax.rewards import check_gold
from zppo_jax.rewards.grade import ANSWER_TYPES, JUDGED, OPTIONS
from zppo_jax.types import IMAGE_MARK, VIDEO_MARK, Question
from zppo_jax.zppo.prompts import UNMARKED

REASONS: dict[str, str] = {
    "row": "the row cannot be read from its file",
    "question": "there is no question, or it is not a text",
    "gold": "there is no gold answer",
    "gold_not_verifiable": "the gold does not verify against itself: no answer would be right",
    "answer_type": "the answer type is unknown",
    "options": "choices, tolerance or other options of the scorer are unfit",
    "image_unreadable": "an image cannot be found or decoded, or has no pixels",
    "video_unreadable": "a video cannot be found or decoded",
    "outside": "a path leaves the directory of its data file (data.allow_outside)",
    "placeholders": "the number of <image> or <video> in the text is not that of the images or videos",
    "prompt_too_long": "the prompt is longer than the largest of prompt.buckets, or has too many pixels",
}
"""Why a row can be bad."""

_PLACEHOLDER = re.compile(r"<(image|video)>")
_LONGEST_METADATA = 256
_MARKS = {"image": IMAGE_MARK, "video": VIDEO_MARK}


class BadRow(ValueError):
    """A row cannot be used as a question; `reason` is one of REASONS, the message says more."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads questions from rows. `answer_type` is for rows without one, `allow_outside` lets paths leave their home."""

    columns: ColumnsConfig
    answer_type: str
    allow_outside: bool

    def question(self, row: Mapping[str, Any], question_id: str, home: str | None) -> Question:
        """The question in a row; relative paths start from `home`. Images are decoded once to see that they are whole,
        but their pixels are not kept; golds are graded against themselves. Raises BadRow."""
        columns = self.columns
        images = [Picture(*one) for one in self._files(row, columns.images, "image", home)]
        videos = [Clip(*one) for one in self._files(row, columns.videos, "video", home)]
        _check_images(images)
        answer_type = self.type_of(row.get(columns.answer_type))
        options = _options(row, columns, answer_type)
        return Question(
            id=question_id,
            text=_placed(_text(row, columns.question, "question"), len(images), len(videos)),
            images=images,
            answer=_gold(row.get(columns.answer), answer_type, options),
            answer_type=answer_type,
            level=_shown(row.get(columns.level)) or "",
            videos=videos,
            options=options,
            metadata=self._metadata(row),
        )

    def type_of(self, value: Any) -> str:
        """The answer type that a row's value names. Raises BadRow."""
        found = _shown(value) or self.answer_type
        if found not in ANSWER_TYPES:
            raise BadRow("answer_type", f"{found!r} is none of {', '.join(ANSWER_TYPES)}")
        return found

    def _files(self, row: Mapping[str, Any], column: str, kind: str, home: str | None) -> list[tuple[bytes, str]]:
        value = row.get(column)
        if value is None and column == f"{kind}s":  # `image` stands for one
            value = row.get(kind)
        try:
            return files_of(value, kind, home, self.allow_outside)
        except MediaError as error:
            raise BadRow(f"{kind}_unreadable" if error.reason == "unreadable" else error.reason, str(error)) from error

    def _metadata(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The columns that are nothing else, if they are short: numbers, texts, and JSON of them under `metadata`."""
        columns = self.columns
        known = {getattr(columns, field.name) for field in dataclasses.fields(columns)} | {"image", "video"}
        others = {name: value for name, value in row.items() if name not in known}
        nested = _nested(others.get("metadata"))
        if nested is not None:
            others = {name: value for name, value in others.items() if name != "metadata"} | nested
        return {name: short for name, value in others.items() if (short := _short(value)) is not None}


def _nested(value: Any) -> dict[str, Any] | None:
    """The object that the column `metadata` holds, or whose JSON it holds; None if it is something else."""
    try:
        found = parse_json(value) if isinstance(value, str | bytes) else value
    except (ValueError, RecursionError):
        return None
    return dict(found) if isinstance(found, Mapping) else None


def _short(value: Any) -> Any:
    """A value that goes to samples.jsonl: a number, or a text of some words; None for any other."""
    value = value.decode(errors="replace") if isinstance(value, bytes) else value
    if isinstance(value, str):
        return value if len(value) <= _LONGEST_METADATA else None
    if isinstance(value, bool | int):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else None


def _shown(value: Any) -> str | None:
    """A value as text; None for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _text(row: Mapping[str, Any], column: str, reason: str) -> str:
    value = row.get(column)
    value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    if not isinstance(value, str) or not value.strip():
        raise BadRow(reason, f"the column {column!r} holds {_brief(value)}, not a text")
    return value


def _brief(value: Any) -> str:
    return "nothing" if value is None else f"{str(value)[:60]!r}" if isinstance(value, str) else type(value).__name__


def _placed(text: str, num_images: int, num_videos: int) -> str:
    """The text without placeholders if all are at its beginning, else with a mark for each. Raises BadRow."""
    text = text.translate(UNMARKED)
    kinds = _PLACEHOLDER.findall(text)
    for kind, number in (("image", num_images), ("video", num_videos)):
        if kinds and kinds.count(kind) != number:
            raise BadRow("placeholders", f"the text has {kinds.count(kind)} <{kind}> for {number} {kind}s")
    leading = re.match(r"(?:\s*<image>)*(?:\s*<video>)*\s*", text)
    assert leading is not None
    if len(_PLACEHOLDER.findall(leading[0])) == len(kinds):
        return text[leading.end() :] if kinds else text
    return _PLACEHOLDER.sub(lambda found: _MARKS[found[1]], text)


def _check_images(images: Sequence[Picture]) -> None:
    for picture in images:
        try:
            picture.check()
        except ValueError as error:
            raise BadRow("image_unreadable", str(error)) from error


def _gold(value: Any, answer_type: str, options: Mapping[str, Any]) -> str:
    """The gold as text, a list as JSON. Raises BadRow for none, and for one that no answer could match."""
    if isinstance(value, list | tuple):
        value = json.dumps([_shown(one) for one in value], ensure_ascii=False) if len(value) else None
    gold = _shown(value)
    if gold is None or not gold.strip():
        raise BadRow("gold", "the row has no gold answer")
    if answer_type in JUDGED:
        return gold
    try:
        fault = check_gold(gold, answer_type, **options)
    except (TypeError, ValueError) as error:
        raise BadRow("options", f"{answer_type} does not take {dict(options)!r} ({error})") from error
    if fault is not None:
        raise BadRow("gold_not_verifiable", fault)
    return gold


def _options(row: Mapping[str, Any], columns: ColumnsConfig, answer_type: str) -> dict[str, Any]:
    """The scorer's options for a question. `choices` and `tolerance` are left out where the type has no use for them,
    since a column has a value for every row; in `options` they are an error. Raises BadRow."""
    allowed = OPTIONS.get(answer_type, {})
    found: dict[str, Any] = {}
    for name, column in (("choices", columns.choices), ("tolerance", columns.tolerance)):
        value = row.get(column)
        if value is not None and value != "" and name in allowed:
            found[name] = value
    for name, value in (_object(row.get(columns.options), "options") if row.get(columns.options) else {}).items():
        if name not in allowed:
            raise BadRow("options", f"{answer_type} has no option {name!r}; it has {', '.join(allowed) or 'none'}")
        if value is not None:
            found[name] = value
    return {name: _option(name, value, allowed[name]) for name, value in found.items()}


def _option(name: str, value: Any, kind: type) -> Any:
    if kind is float:
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise BadRow("options", f"{name} = {_brief(value)} is not a number") from error
        if not math.isfinite(number) or number < 0:
            raise BadRow("options", f"{name} = {number} is not a finite number of at least 0")
        return number
    if isinstance(value, str | bytes):
        value = _json(value, name)
    if not isinstance(value, list | tuple) or not value:
        raise BadRow("options", f"{name} holds {_brief(value)}, not a list of texts")
    return [_shown(one) or "" for one in value]


def _object(value: Any, name: str) -> dict[str, Any]:
    found = _json(value, name) if isinstance(value, str | bytes) else value
    if not isinstance(found, Mapping):
        raise BadRow("options", f"{name} holds {_brief(found)}, not an object")
    return dict(found)


def _json(value: str | bytes, name: str) -> Any:
    try:
        return parse_json(value)
    except (ValueError, RecursionError) as error:
        raise BadRow("options", f"{name} is not JSON ({str(error)[:80]})") from error
