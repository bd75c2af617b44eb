"""The rows of a recording: what identifies an exchange, and what a readable row is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from zppo_jax.errors import ConfigError
from zppo_jax.processor.media import Clip, Picture
from zppo_jax.types import MISS_REASONS, Answer, FinishReason, Missed, Prompt

ABOUT_FILE = "recording.json"
VERSION = 1
PRECOMPUTED = 0
"""The step of rows that belong to no run; the first step of a run is 1."""

_REASON_NUMBERS = {reason: number for number, reason in enumerate(MISS_REASONS)}


class Place(NamedTuple):
    """Where a row is: its step, the number of its file, and its bytes. `reason` is -1 if it has an answer, else the
    number of the reason; `visit` is that of an answer."""

    step: int
    file: int
    start: int
    length: int
    reason: int
    visit: int

    @property
    def missed(self) -> Missed:
        """Why there is no answer."""
        return Missed(MISS_REASONS[self.reason], "recorded")


def prompt_digest(prompt: Prompt) -> str:
    """A hash of what a prompt asks and shows: ids of questions may be row numbers, the same in every data set."""
    found = hashlib.blake2b(prompt.text.encode("utf-8", "surrogatepass"), digest_size=16)
    for one in (*prompt.question.images, *prompt.question.videos):
        for part in _contents(one):
            found.update(part)
    return found.hexdigest()


def _contents(media: Any) -> Iterator[bytes]:
    """The file of an image or a video, or the pixels of one without a file."""
    if isinstance(media, Picture | Clip):
        yield media.content
        return
    for frame in [media] if isinstance(media, np.ndarray) else media.frames:
        yield repr(frame.shape).encode() + frame.tobytes()


def answer_key(question_id: str, digest: str) -> bytes:
    """The key of the answers to a question."""
    return _hash("answer", question_id, digest)


def text_key(ask: str) -> bytes:
    """The key of a text that is written for a turn."""
    return _hash("write", ask)


def key_of(row: Mapping[str, Any]) -> bytes:
    """The key of a row. Raises KeyError, TypeError or ValueError for a damaged one."""
    is_answer = row["purpose"] == "answer"
    return answer_key(row["question"], row["prompt"]) if is_answer else bytes.fromhex(row["ask"])


def _hash(*parts: str) -> bytes:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).digest()


def place_of(row: Mapping[str, Any], file: int, start: int, length: int) -> Place:
    """The place of a row. Raises KeyError, OverflowError, TypeError or ValueError for a damaged one."""
    reason = _REASON_NUMBERS[row["reason"]] if row["reason"] else -1
    if reason < 0 and not _are_answers(row["texts"], row["finish"]):
        raise ValueError("a row without a reason has texts, and why each ended")
    return Place(int(row["step"]), file, start, length, reason, int(row.get("visit", 0)))


def said(got: Sequence[Answer] | Missed) -> dict[str, Any]:
    """The part of a row that says what came of an exchange."""
    if isinstance(got, Missed):
        return {"texts": [], "finish": [], "reason": got.reason}
    return {"texts": [one.text for one in got], "finish": [one.finish_reason for one in got], "reason": ""}


def _are_answers(texts: Any, finish: Any) -> bool:
    return (
        isinstance(texts, list)
        and isinstance(finish, list)
        and 0 < len(texts) == len(finish)
        and all(isinstance(one, str) for one in texts)
        and all(one in get_args(FinishReason) for one in finish)
    )


def lines_of(file: Path) -> Iterator[bytes]:
    """Yields the lines of a file. Raises ConfigError if it cannot be read."""
    try:
        with file.open("rb") as opened:
            yield from opened
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}): put it right, or name another folder") from error


def read_about(folder: Path) -> dict[str, Any]:
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
