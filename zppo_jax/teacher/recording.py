"""Exchanges with a teacher as JSON lines, so that a run can be continued, repeated without the teacher, or begun from
answers that were sampled beforehand.

A folder holds `recording.json` (whose answers these are) and a file for each host. A row is the answer to a question at
a step, or a text that was written; a row without an answer has the reason. Rows are only ever added. Which row counts
does not depend on when it was written:

- an answer counts for its step; a run that makes a step again after a kill finds it, and does not ask again;
- a text counts from its step on, because equal turns get equal texts;
- a row with an answer counts before one without: a failed request may be repeated when a step is made again;
- rows of step 0 were sampled before any run (precompute.py); they serve every step that has no row.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast, get_args

from zppo_jax.errors import ConfigError
from zppo_jax.files import write_atomically
from zppo_jax.keys import RandomStream
from zppo_jax.run.rows import append, json_line
from zppo_jax.types import MISS_REASONS, Answer, FinishReason, Missed, MissReason

ABOUT_FILE = "recording.json"
VERSION = 1
PRECOMPUTED = 0
"""The step of rows that belong to no run; the first step of a run is 1."""

_UNWRITTEN = -1
"""Instead of the number of a file: the row waits for space on the disk."""

_REASON_NUMBERS = {reason: number for number, reason in enumerate(MISS_REASONS)}


class _Place(NamedTuple):
    """Where a row is: its step, the number of its file, and its bytes. `reason` is -1 if it has an answer."""

    step: int
    file: int
    start: int
    length: int
    reason: int


class Recording:
    """The rows of a folder; with `host`, also adds rows, to that host's file.

    `about` describes the exchanges (model, seed, sampling). A recording that is added to must be about the same.
    Raises ConfigError if the folder cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        about: Mapping[str, Any] | None = None,
        host: int = 0,
        report: Callable[[str], None] = print,
    ) -> None:
        self._folder, self._host, self._report = folder, host, report
        self._files: list[Path] = []
        self._rows: dict[bytes, list[_Place]] = {}
        self._visits: dict[bytes, set[int]] = {}
        self._waiting: list[dict[str, Any]] = []
        self._unwritten: dict[int, dict[str, Any]] = {}  # rows that wait for space, by the number of their place
        self._held: BinaryIO | None = None
        self._failed = False
        if about is None:
            self.about = _read_about(folder)
        else:
            self.about = {"version": VERSION, **about}
            self._begin()
        for file in sorted(folder.glob("host-*.jsonl")):
            self._index(file)

    @property
    def adds(self) -> bool:
        """Whether rows can be added."""
        return self._held is not None

    @property
    def has_precomputed(self) -> bool:
        """Whether some rows belong to no run."""
        return any(place.step == PRECOMPUTED for places in self._rows.values() for place in places)

    # ---------------------------------------------------------------- reading

    def answers(self, question_id: str, step: int) -> tuple[Answer, ...] | Missed | None:
        """The answers to a question at a step, or why there was none; None if there is no row."""
        places = [place for place in self._rows.get(_answer_key(question_id), ()) if place.step == step]
        right = [place for place in places if place.reason < 0]
        if right:
            return tuple(Answer(text, reason) for text, reason in self._pairs(right[0]))
        return _failure(places[-1]) if places else None

    def precomputed(self, question_id: str, count: int, stream: RandomStream) -> tuple[Answer, ...] | None:
        """Draws `count` of the answers that were sampled before any run, or all if there are fewer; None: there are
        none."""
        places = [one for one in self._rows.get(_answer_key(question_id), ()) if one.step == PRECOMPUTED]
        found = [pair for place in places if place.reason < 0 for pair in self._pairs(place)]
        if not found:
            return None
        chosen = stream.generator(question_id).permutation(len(found))[:count]
        return tuple(Answer(*found[number]) for number in chosen)

    def visits(self, question_id: str) -> set[int]:
        """The visits to a question that were sampled before any run."""
        return self._visits.get(_answer_key(question_id), set())

    def text(self, ask: str, step: int) -> str | Missed | None:
        """The text that was written for a turn, at this step or before; or why there was none; None if no row says.

        Rows of this host's file come first: a host does not see what another one asks at the same time.
        """
        places = self._rows.get(_ask_key(ask), ())
        own = [place for place in places if place.file == _UNWRITTEN or self._files[place.file] == self._file]
        for some in (own, places):
            right = [place for place in some if place.reason < 0 and place.step <= step]
            if right:
                return self._pairs(min(right))[0][0]
            failed = [place for place in some if place.reason >= 0 and place.step == step]
            if failed:
                return _failure(failed[-1])
        return None

    def _pairs(self, place: _Place) -> list[tuple[str, FinishReason]]:
        if place.file == _UNWRITTEN:
            row = self._unwritten[place.start]
        else:
            with self._files[place.file].open("rb") as file:
                file.seek(place.start)
                row = json.loads(file.read(place.length))
        return list(zip(row["texts"], row["finish"], strict=True))

    # ---------------------------------------------------------------- writing

    def add_answers(
        self, question_id: str, step: int, got: Sequence[Answer] | Missed, visit: int | None = None
    ) -> None:
        """Adds the answers to a question, or the reason why there are none."""
        visit = step if visit is None else visit
        self._add({"step": step, "purpose": "answer", "question": question_id, "visit": visit}, got)

    def add_text(self, ask: str, step: int, got: str | Missed) -> None:
        """Adds a text that was written for a turn, or the reason why there is none."""
        row = {"step": step, "purpose": "write", "ask": _ask_key(ask).hex()}
        self._add(row, got if isinstance(got, Missed) else [Answer(got, "stop")])

    def _add(self, row: dict[str, Any], got: Sequence[Answer] | Missed) -> None:
        failed = isinstance(got, Missed)
        said = {
            "texts": [] if failed else [one.text for one in got],
            "finish": [] if failed else [one.finish_reason for one in got],
            "reason": got.reason if failed else "",
        }
        settings = {name: self.about[name] for name in ("model", "seed", "sampling") if name in self.about}
        self._waiting.append(row | said | settings)
        self._flush()

    def _flush(self) -> None:
        """Writes the waiting rows. If that fails, it is reported once, and they wait for the next row."""
        while self._waiting:
            line, start = json_line(self._waiting[0]), self._size
            try:
                append(self._file, line)
            except OSError as error:
                if not self._failed:
                    self._report(f"!! {self._file}: {error.strerror}: free some space. Rows wait in memory until then")
                self._failed = True
                for row in self._waiting:
                    if id(row) not in self._unwritten:  # it counts meanwhile
                        self._unwritten[id(row)] = row
                        self._keep(row, _UNWRITTEN, id(row), 0)
                return
            self._keep(self._waiting.pop(0), self._files.index(self._file), start, len(line))
            self._size += len(line)
            self._failed = False

    def close(self) -> None:
        """Writes what waits, and frees the folder."""
        self._flush()
        if self._waiting:
            self._report(f"!! {self._file} lacks {len(self._waiting)} rows that could not be written")
        if self._held is not None:
            self._held.close()
            self._held = None

    # ---------------------------------------------------------------- opening

    @property
    def _file(self) -> Path:
        return self._folder / f"host-{self._host:04d}.jsonl"

    def _begin(self) -> None:
        """Holds this host's file."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as stack:
                held = stack.enter_context(self._file.open("ab"))
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._compare()
                self._held = held
                stack.pop_all()
        except BlockingIOError:
            raise ConfigError(f"{self._file} is in use by another run: name another folder") from None
        except OSError as error:
            raise ConfigError(
                f"{self._folder} cannot be recorded to ({error.strerror}): name another folder"
            ) from error

    def _compare(self) -> None:
        """Writes what the recording is about, or refuses to add to one about something else."""
        if not (self._folder / ABOUT_FILE).exists():
            write_atomically(self._folder / ABOUT_FILE, json_line(self.about))
        found = _read_about(self._folder)
        for name in self.about:
            if found.get(name) != self.about[name]:
                raise ConfigError(
                    f"{self._folder} records exchanges with {name} {found.get(name)!r}, and this run has "
                    f"{self.about[name]!r}: name another folder"
                )

    def _index(self, file: Path) -> None:
        """Reads where the rows of a file are. A last line without its end is cut off; another damaged one is left out,
        and reported."""
        number, start = len(self._files), 0
        self._files.append(file)
        for line_number, line in enumerate(_lines(file), 1):  # raises ConfigError
            if not line.endswith(b"\n"):
                if file == self._file and self.adds:
                    with file.open("r+b") as opened:
                        opened.truncate(start)
                break
            try:
                self._keep(json.loads(line), number, start, len(line))
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                self._report(f"!! {file}, line {line_number} is damaged: what it answered counts as missing")
            start += len(line)
        if file == self._file:
            self._size = start

    def _keep(self, row: Mapping[str, Any], file: int, start: int, length: int) -> None:
        reason = _REASON_NUMBERS[row["reason"]] if row["reason"] else -1
        if reason < 0 and not _are_answers(row["texts"], row["finish"]):
            raise ValueError("a row without a reason has texts, and why each ended")
        key = _answer_key(row["question"]) if row["purpose"] == "answer" else bytes.fromhex(row["ask"])
        if row["step"] == PRECOMPUTED and reason < 0:
            self._visits.setdefault(key, set()).add(int(row["visit"]))
        self._rows.setdefault(key, []).append(_Place(int(row["step"]), file, start, length, reason))


def _are_answers(texts: Any, finish: Any) -> bool:
    return (
        isinstance(texts, list)
        and isinstance(finish, list)
        and 0 < len(texts) == len(finish)
        and all(isinstance(one, str) for one in texts)
        and all(one in get_args(FinishReason) for one in finish)
    )


def _failure(place: _Place) -> Missed:
    return Missed(cast(MissReason, MISS_REASONS[place.reason]), "recorded")


def _lines(file: Path) -> Iterator[bytes]:
    try:
        with file.open("rb") as opened:
            yield from opened
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}): put it right, or name another folder") from error


def _answer_key(question_id: str) -> bytes:
    return _hash("answer", question_id)


def _ask_key(ask: str) -> bytes:
    return _hash("write", ask)


def _hash(*parts: str) -> bytes:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).digest()


def _read_about(folder: Path) -> dict[str, Any]:
    """What a recording is about. Raises ConfigError if the folder holds none."""
    try:
        about = json.loads((folder / ABOUT_FILE).read_bytes())
        if not isinstance(about, dict) or about.get("version") != VERSION:
            raise ValueError(f"not version {VERSION}")
        if not isinstance(about.get("sampling"), dict):
            raise ValueError("no sampling")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{folder} holds no recording of a teacher ({ABOUT_FILE}: {error}): name a folder that teacher.record or "
            "zppo_jax.teacher.precompute has written"
        ) from error
    return about
