"""What scoring one response yields: a binary verdict and the reason for it."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Status(enum.StrEnum):
    """Why a verdict is what it is; the only values `Verdict.status` ever has.

    `OK` means that the answer was read and compared (right or wrong). `NEEDS_JUDGE` means that rules cannot
    decide (free-form golds); the caller sends these to a judge model, and they count as wrong until it answers.
    """

    OK = "ok"
    NO_ANSWER = "no_answer"
    MALFORMED = "malformed"
    TOO_LONG = "too_long"
    TIMEOUT = "timeout"
    ERROR = "error"
    NEEDS_JUDGE = "needs_judge"


class Verdict(NamedTuple):
    """The binary outcome reward of one response (App. D.1 of arXiv:2606.18216).

    `answer` is the text in the box, as the model wrote it without outer whitespace, or None where there is none.
    """

    correct: bool
    status: str
    answer: str | None


class MalformedAnswer(ValueError):
    """The answer (or the gold) is not of the form its answer type asks for."""
