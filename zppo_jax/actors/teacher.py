"""The interface of a teacher: answer and write. The rows of `zppo.HELPS` say how a method uses them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from zppo_jax.data.processing import EncodedPrompt
from zppo_jax.keys import RandomStream
from zppo_jax.types import Response


class Teacher(Protocol):
    """A teacher: a model in this process, on other machines, or a recording."""

    def answer(self, items: Sequence[EncodedPrompt], stream: RandomStream) -> Mapping[str, Sequence[Response]]:
        """Samples scored responses to each prompt, new ones at every visit; returns them by the prompt's uid."""
        ...

    def write(self, asks: Sequence[str], stream: RandomStream) -> Sequence[str | None]:
        """Writes a short text for each user turn, without thinking; None if the turn is too long."""
        ...
