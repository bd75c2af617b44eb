"""Rewards of your own: a function of response and question, in killable children (`reward.function`).

The function's process imports it by name; nothing is pickled, and no text is evaluated. docs/rewards.md says what it
is given and what it may return.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from zppo_jax import children
from zppo_jax.rewards.child import NotStarted
from zppo_jax.rewards.extract import extract_answer
from zppo_jax.rewards.pool import MEMORY_MEGABYTES, Comparison, Workers
from zppo_jax.rewards.verdict import Status, Verdict

_NAME = re.compile(r"^[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")


class Asked(Protocol):
    """What a reward function learns of a question; `zppo_jax.types.Question` has it."""

    @property
    def id(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def answer_type(self) -> str: ...
    @property
    def options(self) -> Mapping[str, Any]: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class RewardQuestion:
    """A question as a reward function gets it: plain values, without images and videos.

    `answer` is the gold, `options` are the scorer's (choices, tolerance, ...), `metadata` the columns of the data that
    have no other use.
    """

    id: str
    text: str
    answer: str
    answer_type: str
    options: Mapping[str, Any]
    metadata: Mapping[str, Any]


class FunctionPool(Workers):
    """Scores responses with a function `package.module:name` in child processes, with the limits of `ScoringPool`.

    The verdict is decided if the function returns True, False, 0 or 1, and wrong with status TIMEOUT if it uses up a
    limit of processor time or memory. If it raises, returns anything else or its process dies twice, the response is
    undecided, and `last_fault` says why.

    Raises:
      ValueError: the name is not of that form.
    """

    def __init__(self, name: str, num_workers: int = 1, timeout_seconds: float = 1.0, *, max_tasks: int = 1000):
        if not _NAME.match(name):
            raise ValueError(f"{name!r} names no function: write package.module:name")
        self.name = name
        self.last_fault = ""
        """What the function did wrong most recently; "" if nothing."""
        limits = (timeout_seconds, MEMORY_MEGABYTES)
        command = children.command("zppo_jax.rewards.function_worker", name, *limits, os.getcwd())
        super().__init__(command, num_workers, timeout_seconds, max_tasks)

    def check(self) -> None:
        """Starts a child. Raises ValueError, with the reason, if it cannot import the function."""
        try:
            with self._lent_child(fresh=False):
                pass
        except NotStarted as error:
            raise ValueError(f"{self.name!r} cannot be imported: {error}") from error

    def outcome(self, reply: Any) -> Comparison:
        """Right, wrong, or undecided because the function is at fault."""
        if isinstance(reply, dict):
            self.last_fault = str(reply.get("fault"))
            return False, Status.ERROR
        return bool(reply), Status.OK

    def score_many(self, texts: Sequence[str], questions: Iterable[Asked], region: str) -> list[Verdict]:
        """The verdicts on responses to these questions, in order; `Verdict.answer` is what is in the box."""
        self.require_open()
        tasks = [(text, _plain(_fields(question))) for text, question in zip(texts, questions, strict=True)]
        outcomes = self._spread(tasks)
        self._count("undecided", sum(status != Status.OK and status != Status.TIMEOUT for _, status in outcomes))
        return [
            Verdict(*outcome, extract_answer(text, region)[0]) for outcome, text in zip(outcomes, texts, strict=True)
        ]


def _fields(question: Asked) -> dict[str, Any]:
    return {field.name: getattr(question, field.name) for field in dataclasses.fields(RewardQuestion)}


def _plain(value: Any) -> Any:
    """A value as JSON holds it: arrays as lists, bytes by their length, and anything unknown as its text."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, (bytes, bytearray)):
        return f"<{len(value)} bytes>"
    if isinstance(value, Iterable):
        return [_plain(one) for one in value]
    return str(value)
