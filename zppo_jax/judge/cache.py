"""Verdicts of the judge that are kept on disk, so that no case is asked twice, also not after a restart.

An SQLite file: its transactions are safe against a kill and against other processes that write to it. What cannot be
read or written costs requests and nothing else: it is reported once, and the run goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from zppo_jax.judge.prompt import VERSION, Case
from zppo_jax.judge.verdict import Ruling

LIMIT = 2_000_000
"""Most verdicts that are kept, some 250 MB; the oldest make room for new ones. A run of the paper's size has 800,000
responses."""

_TABLE = """
CREATE TABLE IF NOT EXISTS verdicts (
    number INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, ruling TEXT NOT NULL, step INTEGER NOT NULL
)"""
_INSERT = "INSERT OR IGNORE INTO verdicts (key, ruling, step) VALUES (?, ?, ?)"
_TRIM = "DELETE FROM verdicts WHERE number <= (SELECT max(number) FROM verdicts) - ?"
_WAIT_SECONDS = 10.0  # for another process that is writing


def key_of(case: Case, model: str, max_tokens: int) -> bytes:
    """The key of a verdict: a hash of all that it depends on, the version of the prompt included."""
    message = json.dumps([VERSION, model, max_tokens, *case])
    return hashlib.blake2b(message.encode(), digest_size=16).digest()


class Kept(NamedTuple):
    """A verdict, and the step in which it was given."""

    ruling: Ruling
    step: int


class VerdictCache:
    """Verdicts by key, in a file; `report` is told, once, if it cannot be used. Any thread may call.

    The first verdict on a case stays: another process that judges it too changes nothing.
    """

    def __init__(self, file: Path, report: Callable[[str], None], limit: int = LIMIT) -> None:
        self._file, self._report, self._limit = file, report, limit
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        with self._guarded():
            self._database = self._open()

    def get(self, keys: Iterable[bytes]) -> dict[bytes, Kept]:
        """The verdicts that are kept for some of the keys."""
        found: dict[bytes, Kept] = {}
        with self._lock, self._guarded():
            if (database := self._database) is not None:
                for key in keys:
                    row = database.execute("SELECT ruling, step FROM verdicts WHERE key = ?", (key,)).fetchone()
                    if row is not None:
                        found[key] = Kept(Ruling(row[0]), row[1])
        return found

    def add(self, verdicts: Mapping[bytes, Kept]) -> None:
        """Keeps verdicts, in one transaction."""
        rows = [(key, kept.ruling.value, kept.step) for key, kept in verdicts.items()]
        with self._lock, self._guarded():
            if (database := self._database) is not None and rows:
                with database:
                    database.executemany(_INSERT, rows)
                    database.execute(_TRIM, (self._limit,))

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            database, self._database = self._database, None
            if database is not None:
                database.close()

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connected()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
        damaged = self._file.with_name(f"{self._file.name}.damaged")
        self._file.replace(damaged)
        self._report(f"!! {self._file} is damaged: it is now {damaged.name}, and responses are judged again")
        return self._connected()

    def _connected(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._file, _WAIT_SECONDS, check_same_thread=False)
        try:
            with database:
                database.execute(_TABLE)
            database.execute("SELECT key, ruling, step FROM verdicts LIMIT 1").fetchall()
        except sqlite3.Error:
            database.close()
            raise
        return database

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Reports an error of the file and goes on without it."""
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:
            if self._database is not None:
                self._database.close()
            self._database = None
            self._report(f"!! {self._file} cannot be used ({error}): what is judged from now on is not kept")
