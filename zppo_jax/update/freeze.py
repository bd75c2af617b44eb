"""Frozen parameters: the patterns that select them, and the trainable half of a tree of parameters.

A frozen parameter has no gradient and no optimiser state, and is bit-identical at the end of a run.

A pattern (`optimizer.freeze`) is compared with the whole path of a parameter, such as text/linear/mixer/qkv/kernel,
part by part: `*`, `?` and `[abc]` match characters within a part (the rules of `fnmatch`, case-sensitive), and a part
`**` matches any number of parts, including none. So `vision/**` is the vision tower, `text/embed` the embedding and
`**/*norm/**` everything under a norm. Layers are stacked, so a pattern cannot select a single layer.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Collection, Sequence
from typing import Any

from zppo_jax.errors import ConfigError
from zppo_jax.models.qwen3_5.parameters import flatten, unflatten


def split(params: dict[str, Any], patterns: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits nested `params` (arrays or shapes) into (trainable, frozen); the paths in each are those of the whole.

    Raises ConfigError for a pattern that matches nothing, and if nothing is left to train.
    """
    flat = flatten(params)
    frozen = _frozen(list(flat), patterns)
    halves: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for path, leaf in flat.items():
        halves[path in frozen][path] = leaf
    trainable, rest = (unflatten(half) for half in halves)
    return trainable, rest


def merge(trainable: Any, frozen: Any) -> dict[str, Any]:
    """Merges the halves of `split` again."""
    flat = (flatten(half) for half in (trainable, frozen))
    return unflatten(next(flat) | next(flat))


def matches(path: str, pattern: str) -> bool:
    """Whether the pattern matches this path; the rules are at the top of this file."""
    return _matches(path.split("/"), pattern.split("/"))


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[skipped:], pattern[1:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _frozen(paths: Collection[str], patterns: Sequence[str]) -> set[str]:
    chosen: set[str] = set()
    for pattern in patterns:
        found = {path for path in paths if matches(path, pattern)}
        if not found:
            raise ConfigError(f"optimizer.freeze = {pattern!r} matches no parameter; {_nearby(paths, pattern)}")
        chosen |= found
    if chosen and len(chosen) == len(paths):
        raise ConfigError(
            f"optimizer.freeze = {','.join(patterns)!r} freezes all {len(paths)} parameters: leave some to train"
        )
    return chosen


def _nearby(paths: Collection[str], pattern: str) -> str:
    section = f"{pattern.rstrip('/')}/**"
    if any(matches(path, section) for path in paths):
        return f"a section is frozen by {section!r}"
    close = difflib.get_close_matches(pattern, paths, 3, cutoff=0.3) or sorted(paths)[:3]
    return f"there are {', '.join(close)} and {len(paths) - len(close)} more"
