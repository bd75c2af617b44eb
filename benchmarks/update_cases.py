"""The cases of updates and of whole steps, with floors and goals, and the rollouts that all sides use.

All sides read this, so it imports no side's libraries.

Shape suffixes: P prompts, G rollouts of a prompt, T tokens of a response, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

CLIP_LOW, CLIP_HIGH = 0.2, 0.28
LEARNING_RATE, B1, B2, EPS, GRAD_CLIP = 1e-4, 0.9, 0.999, 1e-8, 1.0
"""AdamW without weight decay."""

CHECKED_UPDATES = 2
"""The number of checked updates on the recorded rollouts, from the checkpoint: the second shows the effect of the first
one's optimiser step."""


class Recorded(NamedTuple):
    """The rollouts of a step, with the inputs of the loss; `rewards_PG` are 0 or 1."""

    prompts_PS: np.ndarray
    responses_PGT: np.ndarray
    old_logprobs_PGT: np.ndarray
    rewards_PG: np.ndarray

    @property
    def advantages_PG(self) -> np.ndarray:
        """Advantages as in the paper: minus the group's mean, divided by the spread of all."""
        centred_PG = self.rewards_PG - self.rewards_PG.mean(axis=1, keepdims=True)
        return (centred_PG / centred_PG.std()).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Case:
    """One step on `prompts` prompts of `prompt` tokens with `rollouts` responses of `new` tokens each: only the update,
    on recorded rollouts (`kind` update), or with the rollouts and their rewards (step).

    `peer` is trl, tunix, or one_device, which is ours without a mesh. `row_tokens` and `rows` are for our side: the
    length of a row, and the rows computed at once; `settling` updates come before those that count. Floor and goal are
    ratios of tokens per CPU second to the peer's; against tunix of tokens times parameters.
    """

    name: str
    kind: str
    model: str
    peer: str
    floor: float
    goal: float
    row_tokens: int
    rows: int
    prompts: int = 2
    rollouts: int = 8
    prompt: int = 32
    new: int = 128
    settling: int = 0

    @property
    def tokens(self) -> int:
        """Sampled tokens of a step."""
        return self.prompts * self.rollouts * self.new

    def token_ids(self, vocab_size: int) -> np.ndarray:
        """Random prompts; the ends of the vocabulary hold special tokens."""
        return np.random.default_rng(0).integers(10, vocab_size - 30, (self.prompts, self.prompt))

    def recorded(self, vocab_size: int) -> Recorded:
        """Random rollouts; their old log-probabilities are near those of a random model, so that some ratios are
        clipped and most are not, and every group has right and wrong ones."""
        rng = np.random.default_rng(1)
        shape = (self.prompts, self.rollouts, self.new)
        responses_PGT = rng.integers(10, vocab_size - 30, shape)
        old_PGT = rng.normal(-np.log(vocab_size), 0.2, shape).astype(np.float32)
        right_P = rng.integers(1, self.rollouts, self.prompts)
        rewards_PG = (np.arange(self.rollouts) < right_P[:, None]).astype(np.float32)
        return Recorded(self.token_ids(vocab_size), responses_PGT, old_PGT, rng.permuted(rewards_PG, axis=1))


def _by_name(*cases: Case) -> dict[str, Case]:
    return {case.name: case for case in cases}


UPDATES = _by_name(
    Case("update-1.12M", "update", "1.12M", "trl", 1.5, 2.2, row_tokens=288, rows=8),
    Case("update-9.47M", "update", "9.47M", "trl", 1.2, 1.6, row_tokens=288, rows=4),
    Case("update-1.12M-devices", "update", "1.12M", "one_device", 1 / 1.5, 1.0, 288, rows=8, settling=30),
    Case("update-9.47M-devices", "update", "9.47M", "one_device", 1 / 1.5, 1.0, 288, rows=8, settling=30),
    Case("update-1.12M-devices-64", "update", "1.12M", "one_device", 1 / 1.5, 1.0, 288, rows=64, prompts=16),
)
STEPS = _by_name(
    Case("step-1.12M", "step", "1.12M", "trl", 2.5, 4.0, row_tokens=288, rows=8),
    Case("step-9.47M", "step", "9.47M", "trl", 1.5, 2.5, row_tokens=288, rows=4),
    Case("step-1.12M-tunix", "step", "1.12M", "tunix", 1.0, 2.0, row_tokens=288, rows=8),
    Case("step-9.47M-tunix", "step", "9.47M", "tunix", 1.0, 2.0, row_tokens=288, rows=4),
)
CASES = UPDATES | STEPS
