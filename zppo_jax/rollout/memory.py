"""How many rollouts fit: the caches of the sampler, planned in bytes before anything is allocated."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from zppo_jax import parallel
from zppo_jax.config import ConfigError
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.rollout import slots
from zppo_jax.rollout.shapes import Shapes


def device_bytes(config: Config, num_rows: int, num_keys: int, dtypes: tuple[str, str], penalises: bool = False) -> int:
    """Bytes on each device of `num_rows` slots, on the mesh in use."""
    shapes = jax.eval_shape(functools.partial(slots.empty, config, num_rows, num_keys, dtypes, penalises))
    total = 0
    for leaf in jax.tree.leaves(parallel.placed_shapes(shapes, slots.axes(shapes, config))):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue
        local = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
        total += math.prod(local) * leaf.dtype.itemsize
    return total


def plan(config: Config, shapes: Shapes, wanted: int, budget: float, dtypes: tuple[str, str]) -> int:
    """How many slots to make: `wanted`, or what fits in `budget` bytes of each device.

    Slots come in multiples of the devices over which rows are divided. Raises ConfigError, which says by how much, when
    not even one for each fits.
    """
    unit = parallel.num_shards("batch")
    one, two = (device_bytes(config, count * unit, shapes.num_keys, dtypes) for count in (1, 2))
    fixed, each = 2 * one - two, two - one
    fitting = math.floor((budget - fixed) / each)
    if fitting < 1:
        need = (one - budget) / 1e9
        raise ConfigError(
            f"rollout.cache_gigabytes = {budget / 1e9:g}: a rollout of {shapes.buckets[-1]} + {shapes.max_new_tokens} "
            f"tokens keeps {one / 1e9:.3g} GB, {need:.3g} GB more: raise it to {one / 1e9:.3g} or more, or lower "
            "rollout.max_new_tokens or the largest of prompt.buckets"
        )
    return min(-(-wanted // unit), fitting) * unit
