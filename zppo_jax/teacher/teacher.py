"""The interface of a teacher, whatever stands behind it: a model in this process, a server, or a recording.

A teacher gives texts. What they are worth to the student is decided elsewhere (teaching.py), in the same way for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, get_args

from zppo_jax.data.processing import EncodedPrompt
from zppo_jax.keys import RandomStream
from zppo_jax.types import FinishReason

Reason = Literal["timeout", "late", "unavailable", "refused", "malformed", "too_long", "missing"]
"""The reason why a teacher gave nothing: no reply in time, or not before the step's deadline; it could not be reached
or failed; it did not take the request; its reply was none; the turn is longer than it can read; a recording has no
such answer."""
REASONS: tuple[Reason, ...] = get_args(Reason)


class Answer(NamedTuple):
    """One sampled response: its whole text, with the `<think>` that the prompt opened, and why it ended."""

    text: str
    finish_reason: FinishReason


class Failed(NamedTuple):
    """A request without a usable reply; `detail` is for the user, in one line."""

    reason: Reason
    detail: str = ""


class Teacher(Protocol):
    """A teacher. Nothing that goes wrong with one request raises an error: the request has Failed.

    All calls come from the thread that samples, except `ahead`, which may come from another one at a time.
    """

    @property
    def name(self) -> str:
        """The name of its model, for records and messages."""
        ...

    def begin(self, step: int) -> None:
        """Begins a step: a new deadline, and a server that was down gets another chance."""
        ...

    def ahead(self, items: Sequence[EncodedPrompt], stream: RandomStream) -> None:
        """Announces prompts that `answer` will be asked with the same stream in this step; a teacher that works beside
        the student begins with them."""
        ...

    def answer(self, items: Sequence[EncodedPrompt], stream: RandomStream) -> Mapping[str, Sequence[Answer] | Failed]:
        """Samples responses to each prompt, all or none of them; returns them by the prompt's uid."""
        ...

    def write(self, asks: Sequence[str], stream: RandomStream) -> Sequence[str | Failed]:
        """Writes a short text for each user turn: greedily, without thinking."""
        ...

    def close(self) -> None:
        """Ends what works for it."""
        ...
