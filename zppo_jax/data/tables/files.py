"""The files of a table: found by their suffix and split, on a disk or wherever fsspec reaches (gs://, hf://, s3://)."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from collections.abc import Sequence
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from zppo_jax.errors import ConfigError

_PROBE_BYTES = 65_536


def find_files(place: str, suffixes: Sequence[str], split: str, key: str) -> list[str]:
    """The files under a directory with one of these suffixes, sorted, as paths or addresses; or the one file, whatever
    its name.

    If some are named after the split (`train.jsonl`, `train-00000-of-00004.parquet`, `train/0.parquet`), only those
    are taken; otherwise all. Hidden files and folders are left out. Raises ConfigError, naming the key.
    """
    try:
        system, root = _system_of(place)
        if not system.exists(root):
            raise ConfigError(f"{key} = {place!r}: there is no such file or directory")
        if system.isfile(root):
            return [place]
        found = system.find(root)
    except ConfigError:
        raise
    except (ImportError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{key} = {place!r} cannot be listed ({reason[:200]})") from error
    inside = {path: path[len(root) :].lstrip("/") for path in found}
    found = [path for path in found if path.endswith(tuple(suffixes)) and not re.search(r"(^|/)\.", inside[path])]
    if not found:
        raise ConfigError(f"{key} = {place!r} holds no file that ends in {' or '.join(suffixes)}")
    named = [path for path in found if _is_of_split(inside[path], split)]
    return sorted(system.unstrip_protocol(path) if "://" in place else path for path in named or found)


def _system_of(place: str) -> tuple[Any, str]:
    """The file system of a path or address, and what it is there. Paths are not parsed: they may hold "::"."""
    return url_to_fs(place) if "://" in place else (LocalFileSystem(), os.path.abspath(place))


def _is_of_split(inside: str, split: str) -> bool:
    """Whether a folder of the path is the split, or the file's name begins with it: train/0.jsonl, train-0.jsonl."""
    *folders, name = inside.split("/")
    return split in folders or re.match(rf"{re.escape(split)}(?![A-Za-z0-9])", name) is not None


def open_file(path: str) -> BinaryIO:
    """Opens a file or an address for reading, with seeking."""
    if "://" not in path:
        return open(path, "rb")
    return cast(Any, fsspec.open(path, "rb")).open()


def home_of(path: str) -> str:
    """The directory of a file."""
    return posixpath.dirname(path) or "."


def fingerprint(files: Sequence[str], *more: str) -> str:
    """A hash of names, sizes, times of change, first and last bytes of files, and of `more`.

    Not of all bytes: a corpus has hundreds of gigabytes. A file that was written again has another time.
    """
    digest = hashlib.sha256("\0".join(more).encode())
    for path in files:
        system, name = _system_of(path)
        facts: dict[str, Any] = system.info(name)
        changed = facts.get("mtime") or facts.get("etag") or facts.get("last_modified") or ""
        digest.update(f"\0{posixpath.basename(path)}\0{facts['size']}\0{changed}\0".encode())
        with open_file(path) as file:
            digest.update(file.read(_PROBE_BYTES))
            if facts["size"] > 2 * _PROBE_BYTES:
                file.seek(-_PROBE_BYTES, 2)
                digest.update(file.read(_PROBE_BYTES))
    return digest.hexdigest()
