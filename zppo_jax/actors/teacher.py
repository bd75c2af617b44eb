"""What a teacher gives: two verbs. What a method does with them is a row of `zppo.HELPS`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from zppo_jax.data.pipeline import EncodedPrompt
from zppo_jax.keys import RandomStream
from zppo_jax.types import Response


class Teacher(Protocol):
    """Whatever stands behind it: a model in this process, on other machines, or a recording."""

    def answer(self, items: Sequence[EncodedPrompt], stream: RandomStream) -> Mapping[str, Sequence[Response]]:
        """Scored responses to each prompt by its uid, fresh on every visit."""
        ...

    def write(self, asks: Sequence[str], stream: RandomStream) -> Sequence[str | None]:
        """A short text for each user turn, without thinking; None where the turn is too long."""
        ...
