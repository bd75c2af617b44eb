"""The interface of a teacher, whatever stands behind it: a model in this process, a server, or a recording.

A teacher gives texts. What they are worth to the student is decided elsewhere (teaching.py), in the same way for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from zppo_jax.data.processing import EncodedPrompt
from zppo_jax.keys import RandomStream
from zppo_jax.types import Answer, Missed


class Teacher(Protocol):
    """A teacher. Nothing that goes wrong with one request raises an error: the request has Missed.

    All calls come from the thread that samples, except `ahead`, which may come from another one at a time.
    """

    @property
    def name(self) -> str:
        """The name of its model, for records and messages."""
        ...

    @property
    def works_beside(self) -> bool:
        """Whether it works while the student samples, so that questions are worth announcing."""
        ...

    def begin(self, step: int) -> None:
        """Begins a step: a new deadline, and a server that was down gets another chance."""
        ...

    def ahead(self, items: Sequence[EncodedPrompt], stream: RandomStream) -> None:
        """Announces prompts that `answer` will be asked with the same stream in this step; a teacher that works beside
        the student begins with them."""
        ...

    def answer(
        self, items: Sequence[EncodedPrompt], stream: RandomStream
    ) -> Iterator[tuple[str, Sequence[Answer] | Missed]]:
        """Samples responses to each prompt, all or none of them; yields (uid of the prompt, responses) as they come."""
        ...

    def write(self, asks: Sequence[str], stream: RandomStream) -> Sequence[str | Missed]:
        """Writes a short text for each user turn: greedily, without thinking."""
        ...

    def close(self) -> None:
        """Ends what works for it."""
        ...
