"""The cases of sampling, with floors and goals. Both sides read this, so it imports neither side's libraries."""

from __future__ import annotations

import dataclasses
import statistics

import numpy as np

CHECKED_TOKENS = 8
"""The number of greedy tokens of every question on which the sides must agree."""


@dataclasses.dataclass(frozen=True)
class Case:
    """`questions` prompts of `prompt` tokens with `rollouts` responses each, `new` tokens long.

    With `shortest`, lengths are log-normal between that and `new`, four standard deviations from end to end: its
    quantiles, evenly spaced, in random order. `slots` rollouts are decoded at the same time. Floor and goal are ratios
    of tokens per CPU second to the peer's; `roofline_goal` is a share of what a copy of memory allows.
    """

    name: str
    model: str
    questions: int
    rollouts: int
    prompt: int
    new: int
    floor: float
    goal: float
    slots: int
    shortest: int | None = None
    roofline_goal: float | None = None

    @property
    def lengths(self) -> np.ndarray:
        """New tokens of each question's responses, int [questions]: the same for every side, in the order asked."""
        if self.shortest is None:
            return np.full(self.questions, self.new)
        low, high = np.log(self.shortest), np.log(self.new)
        normal = statistics.NormalDist((low + high) / 2, (high - low) / 4)
        quantiles = [normal.inv_cdf((place + 0.5) / self.questions) for place in range(self.questions)]
        return np.random.default_rng(0).permutation(np.exp(np.clip(quantiles, low, high)).round().astype(int))

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum()) * self.rollouts

    def token_ids(self, vocab_size: int) -> np.ndarray:
        """Random prompts [questions, prompt]; the ends of the vocabulary hold special tokens."""
        return np.random.default_rng(0).integers(10, vocab_size - 300, (self.questions, self.prompt))


CASES = {
    case.name: case
    for case in (
        Case("rollout-1.1M", "1.1M", 16, 1, 32, 128, floor=5.0, goal=10.0, slots=16),
        Case("rollout-8.9M", "8.9M", 16, 1, 32, 128, floor=2.5, goal=5.0, slots=16),
        Case("rollout-8.9M-groups", "8.9M", 8, 8, 256, 128, floor=4.0, goal=7.0, slots=64),
        Case("rollout-8.9M-lengths", "8.9M", 64, 1, 32, 512, floor=1.6, goal=2.0, slots=16, shortest=16),
        Case("rollout-0.8B", "0.8B", 1, 4, 32, 16, floor=1.5, goal=1.5, slots=4, roofline_goal=0.6),
    )
}
