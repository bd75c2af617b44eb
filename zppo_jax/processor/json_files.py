"""Small JSON files of a checkpoint directory. They are untrusted: whatever they hold, the error is one line."""

from __future__ import annotations

import contextlib
import json
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MAX_BYTES = 16_000_000
"""More than any configuration needs; the tokenizers library reads the tokenizer's table, which is larger."""


def read_object(path: Path) -> dict[str, Any]:
    """Reads the object in a JSON file, empty if the file does not exist. Raises ValueError, naming the file."""
    if not path.is_file():
        return {}
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise ValueError(f"{size:,} bytes, more than {_MAX_BYTES:,}")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:  # a number with too many digits is a ValueError as well
        raise ValueError(f"{path} is not JSON that can be read ({error}): download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(content).__name__}")
    return content


def object_of(content: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    """The object at a key, empty if the key is absent or null. Raises ValueError for any other value."""
    value = content.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{path}: {key} is {reprlib.repr(value)}, not an object")
    return value


def token_ids(value: Any, where: object) -> tuple[int, ...]:
    """Token ids, given as null, one id or a list. Raises ValueError, naming `where`, for anything else."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token) is int and 0 <= token < 2**31 for token in ids):
        raise ValueError(f"{where} is {reprlib.repr(value)}: give the number of a token, or a list of them")
    return tuple(ids)


@contextlib.contextmanager
def explained(directory: object) -> Iterator[None]:
    """Turns any unexpected error that a directory's files cause into a ValueError that names the directory.

    The last resort of a reader: an error with a known fix is raised where it is found.
    """
    try:
        yield
    except (OSError, ValueError, ImportError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(
            f"{directory} has a file whose content cannot be used ({reason}): download it again"
        ) from error
