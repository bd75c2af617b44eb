"""The files of a run: errors in one line, atomic replacement, and cleaning up after a crash."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from pathlib import Path

from zppo_jax.errors import WorkdirError

SHIPPED = Path(__file__).parent / "assets" / "tiny"
"""The warm start that is part of the package: `student` and `teacher`, directories of checkpoints."""


def read_file(file: Path) -> bytes:
    """Reads a file, empty if it does not exist. Raises WorkdirError if it cannot be read."""
    try:
        if file.exists() and not file.is_file():
            raise WorkdirError(
                f"{file} is not a file (a folder, or a device): move it away, then the same command goes on"
            )
        return file.read_bytes() if file.exists() else b""
    except OSError as error:
        raise WorkdirError(f"{file} cannot be read ({error.strerror}): let this user read it") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file so that a reader, or a crash, sees the old content or the new one and nothing between."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # hosts in containers have equal process ids
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(NotADirectoryError):
            temporary.unlink(missing_ok=True)


def probe(directory: Path) -> None:
    """Writes a small file and deletes it again; raises OSError if that fails."""
    file = directory / f".probe-{uuid.uuid4().hex}"
    try:
        write_atomically(file, b"probe")
    finally:
        if directory.is_dir():
            file.unlink(missing_ok=True)


_LEFT_BEHIND = re.compile(r"\.probe-[0-9a-f]{32}|\..+\.[0-9a-f]{32}\.tmp")


def sweep(directory: Path) -> None:
    """Deletes files that `probe` and `write_atomically` left in a killed process; only for the directory's holder."""
    for path in directory.iterdir() if directory.is_dir() else ():
        if _LEFT_BEHIND.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)
