"""Group-relative advantages in two steps (Eqs 2, 3 and 5 of arXiv:2606.18216). NumPy: a few hundred numbers per step.

Shape suffixes: P groups, G rollouts.
"""

from __future__ import annotations

import numpy as np

NORMALISATIONS = ("nonzero", "all", "none")


def group_advantages(rewards_PG: np.ndarray, normalisation: str = "nonzero", eps: float = 1e-6) -> np.ndarray:
    """Computes advantages, float32 [P, G].

    Step 1 subtracts the group mean (no division by the group's own spread, Eq 2). Step 2 divides by the population
    spread over all entries of the groups in S (Eq 3): "nonzero" takes the groups with any spread (the paper's default),
    "all" takes every group, "none" skips the step. A group whose rewards are all equal contributes exactly zero.
    """
    if normalisation not in NORMALISATIONS:
        raise ValueError(f"advantage.normalisation={normalisation!r}: choose one of {', '.join(NORMALISATIONS)}")
    rewards = np.asarray(rewards_PG, np.float64)
    if rewards.ndim != 2:
        raise ValueError(f"rewards must be [groups, rollouts], got shape {rewards.shape}")
    nontrivial_P = rewards.max(axis=1, initial=-np.inf) > rewards.min(axis=1, initial=np.inf)
    # An equal-reward group is set to zero rather than computed: its mean may not be exact in floating point.
    centred = np.where(nontrivial_P[:, None], rewards - rewards.mean(axis=1, keepdims=True), 0.0)
    chosen = centred[nontrivial_P] if normalisation == "nonzero" else centred
    if normalisation != "none" and nontrivial_P.any():
        centred = np.where(nontrivial_P[:, None], (centred - chosen.mean()) / (chosen.std() + eps), 0.0)
    return centred.astype(np.float32)
