"""Changes to the JSON files of a checkpoint directory, as damage, a careless tool or an attacker makes them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 10**6, 10**18, 2**63, 10**400, 0.5, -0.5, 1e-300, 1e300),
    *(float("nan"), float("inf"), float("-inf"), "", "x", "16", "\ud800", [], [1], [None], [[]], {}, {"x": 1}),
    *([10**18, 10**18], {"shortest_edge": 10**18, "longest_edge": 10**18}, ["a"] * 100, {"default": {}}),
)


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside; of a long list the first values only."""
    found = [path] if path else []
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for number, (key, value) in enumerate(items):
        if number < 40:
            found += places(value, (*path, key))
    return found


def changed(content: Any, rng: np.random.Generator) -> Any:
    """A copy in which one to three values are deleted, replaced, nested or moved to another key."""
    content = copy.deepcopy(content)
    for _ in range(rng.integers(1, 4)):
        everywhere = places(content)
        if not everywhere:
            return content
        *parents, key = everywhere[rng.integers(len(everywhere))]
        holder = content
        for parent in parents:
            holder = holder[parent]
        kind = rng.integers(10)
        if kind == 0 and isinstance(holder, dict):
            del holder[key]
        elif kind == 1:
            holder[key] = {"nested": holder[key]}
        elif kind == 2:
            holder[key] = [holder[key]] * 3
        else:
            holder[key] = copy.deepcopy(VALUES[rng.integers(len(VALUES))])
    return content


def change_file(path: Path, original: str, rng: np.random.Generator) -> str:
    """Writes a damaged version of a JSON file's text; returns it."""
    kind = rng.integers(20)
    if kind == 0:
        text = original[: rng.integers(len(original))]
    elif kind == 1:
        text = json.dumps(VALUES[rng.integers(len(VALUES))])
    elif kind == 2:
        place = rng.integers(len(original))
        text = original[:place] + chr(rng.integers(1, 0x300)) + original[place + 1 :]
    else:
        text = json.dumps(changed(json.loads(original), rng))
    path.write_text(text, encoding="utf-8")
    return text


def assert_one_line(error: BaseException, named: object) -> None:
    """Asserts that the message is one line, not too long, with a name in it."""
    message = str(error)
    assert message and "\n" not in message and len(message) < 2000, message[:3000]
    assert str(named) in message, message
