"""Digests of the files of a folder, kept in it as SHA256SUMS, to detect files that have changed since.

The file has the format of `sha256sum`, and `sha256sum --check SHA256SUMS` reads it; its last line, a comment to that
program, is the digest of the lines before. SHA-256, so that a user can check it too; most processors have instructions
for it, 1.1 GB a second on each core of a small cloud machine (CRC-32: 2.8, BLAKE2b: 0.5).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FILE = "SHA256SUMS"


def write(folder: Path) -> None:
    """Writes the digests of all files in a folder and those below. Raises OSError."""
    names = sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path != folder / FILE
    )
    lines = "".join(f"{digest}  {name}\n" for name, digest in zip(names, _digests(folder, names), strict=True))
    (folder / FILE).write_text(_signed(lines))


def exist(folder: Path) -> bool:
    """Whether the digests of a folder were written."""
    return (folder / FILE).exists()


def fault(folder: Path, only: str | None = None, share: tuple[int, int] = (0, 1)) -> str:
    """The first file that has changed since the digests were written, and what is wrong; "" if none has.

    Args:
      folder: a folder in which the digests `exist`.
      only: the name of the one file to read, instead of all.
      share: (index, count): this reader among the `count` that share the files.
    """
    try:
        expected = _read(folder / FILE)
    except (OSError, ValueError) as error:
        return f"{FILE}: {error}"
    names = [only] if only is not None else sorted(expected)[share[0] :: share[1]]
    try:
        found = _digests(folder, names)
    except OSError as error:
        return f"{os.path.relpath(error.filename, folder)}: {error.strerror}"
    wrong = [name for name, digest in zip(names, found, strict=True) if expected.get(name) != digest]
    return f"{wrong[0]}: its content is not what was saved" if wrong else ""


def _digests(folder: Path, names: Sequence[str]) -> list[str]:
    """Hashes the files in threads, since hashlib releases the interpreter's lock; the largest files first, so that no
    thread ends up alone with one."""
    by_size = sorted(names, key=lambda name: -(folder / name).stat().st_size)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = dict(zip(by_size, threads.map(lambda name: _digest(folder / name), by_size), strict=True))
    return [found[name] for name in names]


def _digest(file: Path) -> str:
    with file.open("rb", buffering=0) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _read(file: Path) -> dict[str, str]:
    """Reads the digests by name; raises ValueError if one bit of the file has changed."""
    content = file.read_bytes().decode()
    lines = content.splitlines(keepends=True)
    if content != _signed("".join(lines[:-1])):
        raise ValueError("its last line is not the digest of the lines before")
    return {name: digest for digest, _, name in (line.rstrip("\n").partition("  ") for line in lines[:-1])}


def _signed(lines: str) -> str:
    return f"{lines}# {hashlib.sha256(lines.encode()).hexdigest()} of the lines above\n"
