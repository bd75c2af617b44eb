"""The cases that are measured, with floors and goals. Both sides read this, so it imports neither side's libraries."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Case:
    """A case. `kind` is training (gradient of the mean next-token log-likelihood with respect to all parameters of the
    language model) or prefill (states and keys of all tokens, logits of the last position); floor and goal are ratios
    of tokens per CPU second to the peer's."""

    name: str
    kind: str
    model: str
    batch: int
    length: int
    floor: float
    goal: float

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    def token_ids(self, vocab_size: int) -> np.ndarray:
        """Random text [B, T], the same on both sides; the ends of the vocabulary hold special tokens."""
        return np.random.default_rng(0).integers(10, vocab_size - 300, (self.batch, self.length))


CASES = {
    case.name: case
    for case in (
        Case("training-0.8B-8-layers", "training", "0.8B-8-layers", 1, 512, 1.3, 2.5),
        Case("prefill-0.8B-8-layers", "prefill", "0.8B-8-layers", 1, 512, 1.2, 2.0),
        Case("training-10M", "training", "10M", 4, 512, 1.3, 2.5),
        Case("prefill-10M", "prefill", "10M", 4, 512, 1.2, 2.0),
    )
}
