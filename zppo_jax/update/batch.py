"""From groups of rollouts to the fixed shapes of the compiled update. Host only.

A rollout batch is permuted and cut into I mini-batches of whole groups; a mini-batch is cut into micro-batches of
`groups_per_microbatch` groups whose prompts share a length bucket. Micro-batches of one bucket are stacked on a leading
axis with a count, so that the compiled update loops over the real ones only and its shapes never change.

Shape suffixes: U micro-batches, M groups of a micro-batch, G rollouts, R response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from zppo_jax.models.qwen3_5 import inputs
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.rollout.shapes import Shapes
from zppo_jax.types import Group
from zppo_jax.update.advantages import group_advantages


def split(num_groups: int, num_minibatches: int, seed: int, step: int, epoch: int) -> list[np.ndarray]:
    """Group indices of each mini-batch: a permutation from (seed, step, epoch) in parts whose sizes differ by one."""
    rng = np.random.default_rng([seed, step, epoch, 0x5B])
    return [part for part in np.array_split(rng.permutation(num_groups), num_minibatches) if len(part)]


def advantages(
    groups: Sequence[Group], parts: Sequence[np.ndarray], normalisation: str, scope: str, eps: float
) -> np.ndarray:
    """Advantages [P, G] with the statistics of the whole rollout batch, or of each mini-batch (`scope`)."""
    rewards_PG = np.stack([group.rewards_G for group in groups])
    if scope == "batch":
        return group_advantages(rewards_PG, normalisation, eps)
    out = np.zeros_like(rewards_PG)
    for part in parts:
        out[part] = group_advantages(rewards_PG[part], normalisation, eps)
    return out


def _responses(
    groups: Sequence[Group], advantages_MG: np.ndarray, num_groups: int, shapes: Shapes
) -> dict[str, np.ndarray]:
    sizes = (num_groups, shapes.group_size)
    out = {
        "response_MGR": np.zeros((*sizes, shapes.max_new_tokens), np.int32),
        "old_logprobs_MGR": np.zeros((*sizes, shapes.max_new_tokens), np.float32),
        "mask_MGR": np.zeros((*sizes, shapes.max_new_tokens), bool),
        "advantages_MG": np.zeros(sizes, np.float32),
    }
    out["advantages_MG"][: len(groups)] = advantages_MG
    for m, group in enumerate(groups):
        for g, rollout in enumerate(group.rollouts):
            length = len(rollout.token_ids_T)
            out["response_MGR"][m, g, :length] = rollout.token_ids_T
            out["old_logprobs_MGR"][m, g, :length] = rollout.logprobs_T
            out["mask_MGR"][m, g, :length] = True
    return out


def microbatch(
    config: Config, groups: Sequence[Group], advantages_MG: np.ndarray, num_groups: int, bucket: int, shapes: Shapes
) -> dict[str, Any]:
    """One micro-batch of `num_groups` rows of prompts (empty beyond `groups`) and their responses."""
    features = [group.features for group in groups]
    prompts = inputs.from_features(config, features, num_groups, shapes.buckets[bucket], shapes.patch_slots)
    return prompts | _responses(groups, advantages_MG, num_groups, shapes)


def minibatch(
    config: Config,
    groups: Sequence[Group],
    advantages_PG: np.ndarray,
    shapes: Shapes,
    groups_per_microbatch: int,
    max_groups: int,
) -> dict[str, Any]:
    """The compiled update's input: {"buckets": ({"count", arrays [U, ...]}, ...), "num_tokens": mask total}.

    `max_groups` bounds the groups of a mini-batch over the whole run; U = ceil(max_groups / groups_per_microbatch).
    A group without spread has advantages of exactly zero, hence no gradient: it counts in `num_tokens` and is not
    computed. Most groups are all right or all wrong, so this is most of the update's time.
    """
    capacity = -(-max_groups // groups_per_microbatch)
    buckets = []
    places = np.asarray([shapes.bucket_of(group.features, group.prompt.uid) for group in groups])
    has_gradient = np.any(advantages_PG != 0.0, axis=1)
    for bucket in range(len(shapes.buckets)):
        members = np.flatnonzero((places == bucket) & has_gradient)
        parts = [members[i : i + groups_per_microbatch] for i in range(0, len(members), groups_per_microbatch)]
        count = len(parts)
        parts += [members[:0]] * (capacity - count)
        micro = [
            microbatch(config, [groups[i] for i in part], advantages_PG[part], groups_per_microbatch, bucket, shapes)
            for part in parts
        ]
        stacked = {name: np.stack([one[name] for one in micro]) for name in micro[0]}
        buckets.append({"count": np.int32(count), "arrays": stacked})
    num_tokens = sum(len(rollout.token_ids_T) for group in groups for rollout in group.rollouts)
    return {"buckets": tuple(buckets), "num_tokens": np.float32(num_tokens)}
