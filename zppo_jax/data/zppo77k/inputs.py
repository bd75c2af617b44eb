"""The input files: found in a folder, on the Hub or behind any fsspec URL, opened, and named in errors.

A folder holds Vero as `CONFIG/SPLIT-*.parquet`, or MMFineReason as parquet files of any depth. OWNER/NAME of the Hub is
read through fsspec as hf://datasets/OWNER/NAME; nothing is copied to this machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from zppo_jax.data.zppo77k.recipe import Corpus, SubDataset
from zppo_jax.errors import ConfigError, RunError

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_OTHER_SPLITS = ("val", "test", "dev")
_BUFFER = 2**20
"""Bytes that are read at once: a column of a large row group is streamed, and not loaded whole."""


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A parquet file. `upstream` is its Vero folder ("" in MMFineReason, where a column says it); `name` is relative to
    the corpus, so that it does not depend on the machine."""

    corpus: Corpus
    upstream: str
    name: str
    path: str

    def row_id(self, row: int) -> str:
        """The id of a question: its file and row. Upstream's own ids are missing or repeated."""
        return f"{self.name.removesuffix('.parquet')}/{row}"


def url_of(source: str) -> str:
    """The folder or URL that a flag means: a local folder, a URL of fsspec, or OWNER/NAME of a data set on the Hub."""
    if os.path.isdir(source) or "://" in source:
        return source.rstrip("/")
    if _HUB_ID.fullmatch(source):
        return f"hf://datasets/{source}"
    raise ConfigError(f"there is no folder {source!r}: give a folder, a URL such as gs://..., or OWNER/NAME of the Hub")


def find_vero(source: str, rows: Sequence[SubDataset], split: str) -> list[InputFile]:
    """The files of the Vero folders in `rows`, in their order. Raises ConfigError if there are none."""
    fs, root = _open_folder(source, "--vero")
    with _explained(source):
        folders = {posixpath.basename(one.rstrip("/")).casefold(): one for one in fs.ls(root, detail=False)}
        found = []
        for row in rows:
            folder = folders.get(row.upstream.casefold())
            for path in sorted(fs.glob(f"{folder}/{split}-*.parquet")) if folder else ():
                name = f"vero/{row.upstream}/{posixpath.basename(path)}"
                found.append(InputFile("vero", row.upstream, name, fs.unstrip_protocol(path)))
    if rows and not found:
        example = f"{rows[0].upstream}/{split}-00000-of-00001.parquet"
        raise ConfigError(
            f"--vero={source} has no folder of the recipe with files such as {example}; --list names them"
        )
    return found


def find_mmfinereason(source: str) -> list[InputFile]:
    """The parquet files of MMFineReason, of any depth, except those of other splits. Raises ConfigError if none."""
    fs, root = _open_folder(source, "--mmfinereason")
    with _explained(source):
        paths = sorted(fs.glob(f"{root}/**/*.parquet"))
    kept = [path for path in paths if not posixpath.basename(path).startswith(_OTHER_SPLITS)]
    if not kept:
        raise ConfigError(f"--mmfinereason={source} holds no parquet files: give the folder of train-*.parquet")
    names = [posixpath.relpath(path, root) for path in kept]
    return [
        InputFile("mmfinereason", "", f"mmfinereason/{name}", fs.unstrip_protocol(path))
        for name, path in zip(names, kept, strict=True)
    ]


def _open_folder(source: str, flag: str) -> tuple[Any, str]:
    url = url_of(source)
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{flag}={source} cannot be opened: {' '.join(str(error).split())[:200]}") from error


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turns errors about a file into a RunError that names it."""
    try:
        yield
    except pa.ArrowInvalid as error:
        raise RunError(
            f"{path} is not a complete parquet file ({_first_words(error)}): download it again, then run the same "
            "command; what is finished is kept"
        ) from error
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist (any more): put it there, then run the same command") from error
    except (RunError, ConfigError):
        raise
    except Exception as error:
        if not isinstance(error, OSError) and os.path.exists(path.removeprefix("file://")):
            raise  # a fault of the program; remote systems have errors of their own
        raise RunError(
            f"{path} cannot be read ({_first_words(error)}): it is damaged or out of reach; download it again or try "
            "later, then run the same command; what is finished is kept"
        ) from error


def _first_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


@contextlib.contextmanager
def opened(path: str) -> Iterator[pq.ParquetFile]:
    """A parquet file, local or remote, which is read as a stream. Raises RunError, naming it, also within the block."""
    with _explained(path), contextlib.ExitStack() as stack:
        local = path.removeprefix("file://")
        target: Any = local if "://" not in local else stack.enter_context(fsspec.open(path, "rb"))  # pyright: ignore
        yield stack.enter_context(pq.ParquetFile(target, buffer_size=_BUFFER, pre_buffer=False))


def sha256(path: str) -> str:
    """The SHA-256 of a file: as the Hub states it for its own files, else read."""
    fs, inside = fsspec.core.url_to_fs(path)
    with _explained(path):
        stated = fs.info(inside).get("lfs") if path.startswith("hf://") else None
        if stated and len(str(stated["sha256"])) == 64:
            return str(stated["sha256"])
        digest = hashlib.sha256()
        with fs.open(inside, "rb") as file:
            while chunk := file.read(_BUFFER):
                digest.update(chunk)
        return digest.hexdigest()


def state(path: str) -> list[Any]:
    """What tells whether a file has changed since it was hashed: size and time, or the remote system's own mark."""
    fs, inside = fsspec.core.url_to_fs(path)
    with _explained(path):
        info = fs.info(inside)
    marks = (info.get(key) for key in ("mtime", "updated", "LastModified", "ETag", "blob_id", "ino"))
    return [info.get("size"), *map(str, marks)]
