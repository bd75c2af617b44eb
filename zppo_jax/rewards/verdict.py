"""What scoring one response yields: a binary verdict and the reason for it."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Status(enum.StrEnum):
    """Why a verdict is what it is; the only values `Verdict.status` ever has.

    What the response caused is decided: `OK` (read and compared, right or wrong), `NO_ANSWER`, `MALFORMED` (the answer
    cannot be read or compared), `TOO_LONG`, and `TIMEOUT` (comparing it used up a limit of processor time or memory).
    What the machinery or the data caused is not (`UNDECIDED`): `ERROR` (a comparison failed twice, or the gold cannot
    be scored) and `NEEDS_JUDGE` (a free-form gold, which only a judge model can decide).
    """

    OK = "ok"
    NO_ANSWER = "no_answer"
    MALFORMED = "malformed"
    TOO_LONG = "too_long"
    TIMEOUT = "timeout"
    ERROR = "error"
    NEEDS_JUDGE = "needs_judge"


UNDECIDED: frozenset[Status] = frozenset({Status.ERROR, Status.NEEDS_JUDGE})
"""The statuses under which a response is neither right nor wrong."""


class Verdict(NamedTuple):
    """The binary outcome reward of one response (App. D.1 of arXiv:2606.18216).

    `answer` is the text in the box, as the model wrote it without outer whitespace, or None where there is none.
    `correct` is False where nothing was decided: ask `decided` before counting such a response as wrong.
    """

    correct: bool
    status: str
    answer: str | None

    @property
    def decided(self) -> bool:
        """Whether the response is right or wrong; False where the machinery or the gold is why there is neither."""
        return self.status not in UNDECIDED


class MalformedAnswer(ValueError):
    """The answer (or the gold) is not of the form its answer type asks for."""
