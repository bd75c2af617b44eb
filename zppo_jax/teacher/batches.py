"""The prompts that a teacher with separate devices answers while the student still samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from zppo_jax.data.processing import EncodedPrompt
from zppo_jax.rollout.lane import Lane
from zppo_jax.rollout.sample import Finished

Begin = Callable[[Sequence[EncodedPrompt]], Iterator[Finished]]
"""Begins to sample responses to prompts in the lane, and returns what will come."""

Batch = tuple[Sequence[EncodedPrompt], Iterator[Finished]]
"""Prompts that are sampled together, and what comes of them."""


class Batches:
    """Gathers announced prompts into batches of `size`, which fill the teacher's slots; a full batch begins at once.

    What is sampled together depends on the announcements and their order alone, never on the clock.
    """

    def __init__(self, lane: Lane, size: int) -> None:
        self._lane, self._size = lane, size
        self._waiting: list[EncodedPrompt] = []
        self._begun: list[Batch] = []

    def announce(self, items: Sequence[EncodedPrompt], begin: Begin) -> None:
        """Adds prompts; `begin` begins the batches that are now full."""
        self._waiting += items
        while len(self._waiting) >= self._size:
            batch, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
            self._begun.append((batch, begin(batch)))

    def take(self, items: Sequence[EncodedPrompt], begin: Begin) -> list[Batch]:
        """The batches that hold these prompts: those that have begun, and one of the others, which begins now."""
        asked, known = {item.prompt.uid for item in items}, {item.prompt.uid for item in self._waiting}
        begun = [(batch, chunks) for batch, chunks in self._begun if any(item.prompt.uid in asked for item in batch)]
        known |= {item.prompt.uid for batch, _ in begun for item in batch}
        rest = [item for item in self._waiting if item.prompt.uid in asked]
        rest += [item for item in items if item.prompt.uid not in known]
        return [*begun, (rest, begin(rest))] if rest else begun

    def drop(self) -> None:
        """Forgets all prompts, and waits until nothing is sampled."""
        self._waiting, self._begun = [], []
        self._lane.give_up()

    def close(self) -> None:
        self.drop()
        self._lane.close()
