"""The result of scoring one response: a binary verdict and the reason for it."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Status(enum.StrEnum):
    """The reason for a verdict; `Verdict.status` has no other values.

    Decided, because the response caused it: `OK` (read and compared, right or wrong), `NO_ANSWER`, `MALFORMED` (the
    answer cannot be read or compared), `TOO_LONG`, and `TIMEOUT` (comparing it used up a limit of processor time or
    memory). Decided as wrong, because a judge's output is no verdict: `JUDGE_MALFORMED`. Undecided (`UNDECIDED`),
    because the machinery or the data caused it: `ERROR` (a comparison failed twice, or the gold cannot be scored) and
    `NEEDS_JUDGE` (a free-form gold, which only a judge model can decide, and there was none or it gave no answer).
    """

    OK = "ok"
    NO_ANSWER = "no_answer"
    MALFORMED = "malformed"
    TOO_LONG = "too_long"
    TIMEOUT = "timeout"
    JUDGE_MALFORMED = "judge_malformed"
    ERROR = "error"
    NEEDS_JUDGE = "needs_judge"


UNDECIDED: frozenset[Status] = frozenset({Status.ERROR, Status.NEEDS_JUDGE})
"""The statuses under which a response is neither right nor wrong."""


class Verdict(NamedTuple):
    """The binary outcome reward of one response (App. D.1 of arXiv:2606.18216).

    `answer` is the text in the box, as the model wrote it without outer whitespace; None if there is none.
    `correct` is False if nothing was decided: check `decided` before you count such a response as wrong.
    """

    correct: bool
    status: str
    answer: str | None

    @property
    def decided(self) -> bool:
        """Whether the response is right or wrong; False if it is neither because of the machinery or the gold."""
        return self.status not in UNDECIDED


class MalformedAnswer(ValueError):
    """The answer (or the gold) does not have the form that its answer type requires."""
