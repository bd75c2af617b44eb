"""Image and video files as rows hold them: bytes, a path, base64, a {bytes, path} struct, or a list of these."""

from __future__ import annotations

import base64
import binascii
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*")
_DATA_URI = re.compile(r"data:[\w/+.-]*;base64,", re.IGNORECASE)


class MediaError(ValueError):
    """A value is not a file, or its file cannot be read; `reason` is "unreadable" or "outside"."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def files_of(value: Any, kind: str, home: str | None, allow_outside: bool) -> list[tuple[bytes, str]]:
    """The files (content, name for errors) that a row's value holds, in order; paths start from `home`.

    Addresses (https://...) are refused, since nothing here downloads. Raises MediaError.
    """
    if value is None:
        return []
    values = value if isinstance(value, list | tuple) else [value]
    return [_file_of(one, f"{kind} {number}", home, allow_outside) for number, one in enumerate(values)]


def _file_of(value: Any, name: str, home: str | None, allow_outside: bool) -> tuple[bytes, str]:
    if isinstance(value, Mapping):
        path = value.get("path")
        value = value.get("bytes") or path
        name = f"{name} ({path})" if isinstance(path, str) and path else name
    if isinstance(value, bytes) and value:
        return value, name
    if not isinstance(value, str) or not value:
        raise MediaError(
            "unreadable", f"{name} is {'empty' if not value else type(value).__name__}: give bytes or a path"
        )
    encoded = _decoded(value)
    if encoded is not None:
        return encoded, name
    return _read(value, f"{name} ({value[:200]})", home, allow_outside), f"{name} ({value[:200]})"


def _decoded(text: str) -> bytes | None:
    """The bytes that base64 stands for; None if the text is a path. (base64 of a JPEG begins like one: /9j/4AAQ...)"""
    uri = _DATA_URI.match(text)
    if uri is None and not _BASE64.fullmatch(text):
        return None
    try:
        return base64.b64decode("".join(text[uri.end() if uri else 0 :].split()), validate=True)
    except binascii.Error:
        return None


def _read(path: str, name: str, home: str | None, allow_outside: bool) -> bytes:
    where = _resolved(path, name, home, allow_outside)
    from zppo_jax.data.tables.files import open_file  # imports fsspec

    try:
        if "://" not in where and not Path(where).is_file():
            raise MediaError("unreadable", f"{name}: no such file as {where}")
        with open_file(where) as file:
            return file.read()
    except (OSError, ValueError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError("unreadable", f"{name} cannot be read ({' '.join(str(error).split())[:200]})") from error


def _resolved(path: str, name: str, home: str | None, allow_outside: bool) -> str:
    """The path from `home`; raises MediaError if it leaves it, by `..`, as an absolute path or through a link."""
    if re.match(r"https?://", path, re.IGNORECASE):
        raise MediaError("unreadable", f"{name} is an address: download it, and give its path")
    if "\0" in path or len(path) > 4096:
        raise MediaError("unreadable", f"{name} is not a path")
    if home is None and not allow_outside:
        raise MediaError("outside", f"{name} is a path, but these rows have no directory: set data.allow_outside=True")
    if home is not None and "://" in home:
        whole = path if "://" in path else posixpath.normpath(f"/{path}")
        if ("://" in path and not allow_outside) or (f"/{path}" != whole and ".." in path.split("/")):
            raise MediaError("outside", f"{name} leaves {home}: set data.allow_outside=True if that is right")
        return path if "://" in path else home.rstrip("/") + whole
    whole = Path(home or ".").joinpath(path)
    if not allow_outside and not whole.resolve().is_relative_to(Path(home or ".").resolve()):
        raise MediaError("outside", f"{name} leaves {home}: set data.allow_outside=True if that is right")
    return str(whole)
