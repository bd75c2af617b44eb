"""Random draws of the host side: each one comes from (purpose, seed, step, question), never from a shared stream.

A shared generator would make a draw depend on how many draws came before it, so that adding one would change all
later ones and a resumed run could differ. Python's own `hash` is salted per process; blake2b is not.
"""

from __future__ import annotations

import hashlib
import json
from typing import Literal

import numpy as np

from zppo_jax.types import Kind

Purpose = Literal["replay_draw", "pre_cap_ties"] | Kind
"""What a draw is for; a reformulation draws under its own kind."""


def stable_hash(purpose: Purpose, seed: int, step: int, question_id: str = "") -> int:
    """A 128-bit number that is the same in every process, on every machine and under every version of numpy."""
    # JSON keeps the fields apart: ("a", 1, 23) and ("a", 12, 3) must not collide.
    message = json.dumps([purpose, int(seed), int(step), question_id])
    return int.from_bytes(hashlib.blake2b(message.encode(), digest_size=16).digest(), "big")


def generator(purpose: Purpose, seed: int, step: int, question_id: str = "") -> np.random.Generator:
    """A fresh generator for one purpose of one step (and one question), independent of all others."""
    sequence = np.random.SeedSequence(stable_hash(purpose, seed, step, question_id))
    return np.random.Generator(np.random.PCG64(sequence))
