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
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from zppo_jax.errors import ConfigError
from zppo_jax.files import write_atomically
from zppo_jax.keys import RandomStream
from zppo_jax.run.rows import append, json_line
from zppo_jax.teacher.rows import (
    ABOUT_FILE,
    PRECOMPUTED,
    VERSION,
    Place,
    answer_key,
    key_of,
    lines_of,
    place_of,
    prompt_digest,
    read_about,
    said,
    text_key,
)
from zppo_jax.types import Answer, FinishReason, Missed, Prompt

_WAITING = -1
"""Instead of the number of a file: the row waits for space on the disk."""


class Recording:
    """The rows of a folder. With `about`, which describes the exchanges (model, seed, sampling), rows can be added to
    the file of `host`; a recording that is added to must be about the same.

    Raises ConfigError if the folder cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        about: Mapping[str, Any] | None = None,
        host: int = 0,
        report: Callable[[str], None] = print,
    ) -> None:
        self._folder, self._file, self._report = folder, folder / f"host-{host:04d}.jsonl", report
        self._files: list[Path] = []
        self._rows: dict[bytes, list[Place]] = {}
        self._waiting: dict[int, dict[str, Any]] = {}  # rows that are not written yet, by their number
        self._added, self._size, self._is_full = 0, 0, False
        self._held: BinaryIO | None = None
        self.about = read_about(folder) if about is None else {"version": VERSION, **about}
        if about is not None:
            self._hold()
        for file in sorted(folder.glob("host-*.jsonl")):
            self._index(file)

    @property
    def has_precomputed(self) -> bool:
        """Whether some rows belong to no run."""
        return any(place.step == PRECOMPUTED for places in self._rows.values() for place in places)

    # ---------------------------------------------------------------- reading

    def answers(self, prompt: Prompt, step: int) -> tuple[Answer, ...] | Missed | None:
        """The answers to a prompt at a step, or why there was none; None if there is no row."""
        places = [place for place in self._places(prompt) if place.step == step]
        right = [place for place in places if place.reason < 0]
        if right:
            return tuple(Answer(text, reason) for text, reason in self._pairs(right[0]))
        return places[-1].missed if places else None

    def precomputed(self, prompt: Prompt, count: int, stream: RandomStream) -> tuple[Answer, ...] | None:
        """Draws `count` of the answers that were sampled before any run, or all if there are fewer; None: there are
        none."""
        places = [place for place in self._places(prompt) if place.step == PRECOMPUTED and place.reason < 0]
        found = [pair for place in places for pair in self._pairs(place)]
        if not found:
            return None
        chosen = stream.generator(prompt.question.id).permutation(len(found))[:count]
        return tuple(Answer(*found[number]) for number in chosen)

    def visits(self, prompt: Prompt) -> set[int]:
        """The visits to a question that were sampled before any run."""
        places = self._places(prompt)
        return {place.visit for place in places if place.step == PRECOMPUTED and place.reason < 0}

    def text(self, ask: str, step: int) -> str | Missed | None:
        """The text that was written for a turn, at this step or before; or why there was none; None if no row says.

        Rows of this host's file come first: a host does not see what another one asks at the same time.
        """
        places = self._rows.get(text_key(ask), [])
        its = [place for place in places if place.file == _WAITING or self._files[place.file] == self._file]
        for some in (its, places):
            right = [place for place in some if place.reason < 0 and place.step <= step]
            if right:
                return self._pairs(min(right, key=lambda place: place.step))[0][0]
            failed = [place for place in some if place.reason >= 0 and place.step == step]
            if failed:
                return failed[-1].missed
        return None

    def _places(self, prompt: Prompt) -> list[Place]:
        return self._rows.get(answer_key(prompt.question.id, prompt_digest(prompt)), [])

    def _pairs(self, place: Place) -> list[tuple[str, FinishReason]]:
        if place.file == _WAITING:
            row = self._waiting[place.start]
        else:
            with self._files[place.file].open("rb") as file:
                file.seek(place.start)
                row = json.loads(file.read(place.length))
        return list(zip(row["texts"], row["finish"], strict=True))

    # ---------------------------------------------------------------- writing

    def add_answers(self, prompt: Prompt, step: int, got: Sequence[Answer] | Missed, visit: int | None = None) -> None:
        """Adds the answers to a prompt, or the reason why there are none; `visit` is the step if it is not given."""
        what = {"purpose": "answer", "question": prompt.question.id, "prompt": prompt_digest(prompt)}
        self._add({"step": step, **what, "visit": step if visit is None else visit}, got)

    def add_text(self, ask: str, step: int, got: str | Missed) -> None:
        """Adds a text that was written for a turn, or the reason why there is none."""
        row = {"step": step, "purpose": "write", "ask": text_key(ask).hex()}
        self._add(row, got if isinstance(got, Missed) else [Answer(got, "stop")])

    def _add(self, row: dict[str, Any], got: Sequence[Answer] | Missed) -> None:
        """A row counts at once, also while it waits."""
        row |= said(got) | {name: value for name, value in self.about.items() if name != "version"}
        self._added += 1
        self._waiting[self._added] = row
        self._rows.setdefault(key_of(row), []).append(place_of(row, _WAITING, self._added, 0))
        self._flush()

    def _flush(self) -> None:
        """Writes the waiting rows. If that fails, it is reported once, and they wait for the next row."""
        for number, row in list(self._waiting.items()):
            line = json_line(row)
            try:
                append(self._file, line)
            except OSError as error:
                if not self._is_full:
                    self._report(f"!! {self._file}: {error.strerror}: free some space. Rows wait in memory until then")
                self._is_full = True
                return
            written = place_of(row, self._files.index(self._file), self._size, len(line))
            places = self._rows[key_of(row)]
            places[places.index(place_of(row, _WAITING, number, 0))] = written
            del self._waiting[number]
            self._size, self._is_full = self._size + len(line), False

    def close(self) -> None:
        """Writes what waits, and frees the folder."""
        self._flush()
        if self._waiting:
            self._report(f"!! {self._file} lacks {len(self._waiting)} rows that could not be written")
        if self._held is not None:
            self._held.close()
            self._held = None

    # ---------------------------------------------------------------- opening

    def _hold(self) -> None:
        """Takes this host's file for this process."""
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
        found = read_about(self._folder)
        for name in self.about:
            if found.get(name) != self.about[name]:
                raise ConfigError(
                    f"{self._folder} records exchanges with {name} {found.get(name)!r}, and this run has "
                    f"{self.about[name]!r}: name another folder"
                )

    def _index(self, file: Path) -> None:
        """Reads where the rows of a file are. A last line without its end is cut off if rows are added; another damaged
        line is left out, and reported."""
        start, number = 0, len(self._files)
        self._files.append(file)
        for line_number, line in enumerate(lines_of(file), 1):
            if not line.endswith(b"\n"):
                if file == self._file and self._held is not None:
                    self._held.truncate(start)
                break
            try:
                row = json.loads(line)
                place = place_of(row, number, start, len(line))
                self._rows.setdefault(key_of(row), []).append(place)
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                self._report(f"!! {file}, line {line_number} is damaged: what it answered counts as missing")
            start += len(line)
        if file == self._file:
            self._size = start
