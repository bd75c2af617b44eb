"""A row as upstream has it, whichever corpus: its texts, and its media when they are asked for."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import math
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Upstream:
    """The texts of a row. `upstream` is the folder or source that it belongs to; `extra` goes into the metadata."""

    upstream: str
    id: str
    question: str
    gold: str | None
    reward_type: str = ""
    tolerance: float | None = None
    pass_rate: float | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def text(value: Any) -> str:
    """A cell's text; empty for anything else."""
    return value if isinstance(value, str) else ""


def plain(value: Any) -> str | int | float | None:
    """A cell's text or number, as JSON takes it; None for anything else."""
    return value if isinstance(value, str | int | float) else None


def number(value: Any) -> float | None:
    """A finite number, also from a text; None if it is none."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def media(value: Any) -> list[bytes | None]:
    """The files in a cell: a {bytes, path} struct, bytes, base64 text, or a list of these; None where a file has no
    content. An empty cell has none."""
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [_content(one) for one in value]
    return [_content(value)]


def _content(value: Any) -> bytes | None:
    inside = value.get("bytes") if isinstance(value, Mapping) else value
    if isinstance(inside, str):
        try:
            return base64.b64decode(inside.partition(",")[2] if inside.startswith("data:") else inside, validate=True)
        except (binascii.Error, ValueError):
            return None
    return inside if isinstance(inside, bytes) else None
