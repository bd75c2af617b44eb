"""Asks the teacher while the student still samples, as soon as it is certain that a question will be asked about."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from zppo_jax.data.processing import EncodedPrompt
from zppo_jax.keys import RandomStream
from zppo_jax.types import Rollout
from zppo_jax.zppo.select import Tally, certain


class Ahead:
    """Follows the scored rollouts of a step, and announces certain questions to the teacher, each once.

    A server's answers then come in while the longest rollouts are still sampled. Nothing is announced that would not be
    asked anyway, except a question whose last rollouts nothing can decide. What is announced at each call depends on
    the rollouts and not on the clock. `limit` None: every hard question is asked about.
    """

    def __init__(
        self,
        announce: Callable[[Sequence[EncodedPrompt]], None],
        items: Sequence[EncodedPrompt],
        group_size: int,
        threshold: float,
        limit: int | None,
        ties: RandomStream,
        num_elsewhere: int = 0,
    ) -> None:
        self._announce, self._items = announce, {item.prompt.question.id: item for item in items}
        self._ids = [item.prompt.question.id for item in items]
        self._tallies = {name: Tally(group_size) for name in self._ids}
        self._rule = (threshold, limit, ties, num_elsewhere)
        self._announced: set[str] = set()

    def __call__(self, scored: Mapping[tuple[int, int], Rollout]) -> None:
        """Takes note of rollouts by (index of the prompt, number of the sample)."""
        for (index, _), rollout in scored.items():
            if rollout.decided:
                tally = self._tallies[self._ids[index]]
                right, wrong = tally.right + rollout.correct, tally.wrong + (not rollout.correct)
                self._tallies[self._ids[index]] = tally._replace(right=right, wrong=wrong)
        new = certain(self._tallies, *self._rule) - self._announced
        if new:
            self._announced |= new
            self._announce([self._items[name] for name in self._ids if name in new])
