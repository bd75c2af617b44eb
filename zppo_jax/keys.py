"""The random numbers of a run: every draw comes from (seed, step, purpose), never from a shared generator.

A shared generator would make a draw depend on how many draws came before it: adding one would change all later ones,
and a resumed run could differ. `RandomStream` names a stream; the sampler folds it into the key of each rollout
(rollout/requests.py), the host draws with `generator` and `hash`, and mini-batches with `order`. Digits are the one
exception: a question depends on its index and not on the step at which it is read (data/digits.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np

ROLLOUTS = {"student": 1, "teacher": 2, "reformulated": 3, "evaluate": 4, "write": 5, "request": 6, "judge": 7}
"""Purposes of sampling on the device, with the number that is folded into the keys."""

ORDERS = {"minibatches": 0x5B, "compared": 0x3A}
"""Purposes of permutations of a step's groups: the mini-batches of an epoch, and the choice of groups that measure the
mismatch between trainer and sampler."""

STATE_ROUNDING, PARAMETER_ROUNDING = range(2)
"""Purposes of the random bits of stochastic rounding, within an update (update/optimizer.py)."""


@dataclasses.dataclass(frozen=True)
class RandomStream:
    """Names a random stream. Together with the uid of a prompt and the number of a sample it determines a rollout."""

    seed: int = 0
    step: int = 0
    purpose: str = "request"

    def hash(self, question_id: str = "") -> int:
        """A 128-bit number that is the same in every process, on every machine and under every version of numpy.

        Python's own `hash` is salted per process; blake2b is not. JSON keeps the fields apart: ("a", 1, 23) and
        ("a", 12, 3) must not collide.
        """
        message = json.dumps([self.purpose, int(self.seed), int(self.step), question_id])
        return int.from_bytes(hashlib.blake2b(message.encode(), digest_size=16).digest(), "big")

    def generator(self, question_id: str = "") -> np.random.Generator:
        """Makes a generator, independent of those of all other streams and questions."""
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(self.hash(question_id))))

    def order(self, count: int, *more: int) -> np.ndarray:
        """A permutation of range(count), for a purpose of ORDERS; it also depends on the numbers `more` (an epoch)."""
        return np.random.default_rng([self.seed, self.step, *more, ORDERS[self.purpose]]).permutation(count)
