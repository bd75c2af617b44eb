"""Plans how many rollouts fit: the bytes of the sampler's caches, before anything is allocated."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax

from zppo_jax import parallel
from zppo_jax.errors import ConfigError
from zppo_jax.models.qwen3_5 import decode_weights
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.rollout.shapes import Shapes
from zppo_jax.rollout.state import empty

MARGIN = 0.2
"""The share of the free memory that is reserved for everything unplanned: temporaries of prefill and decoding, features
of images, fragmentation."""


class BudgetMessages(NamedTuple):
    """Texts for errors: the name of a budget (`given`: GB), and the advice if it is too small (`need`: GB)."""

    budget: str = "rollout.cache_gigabytes = {given:g}"
    advice: str = "raise it to {need:g} or more, or lower rollout.max_new_tokens or the largest of prompt.buckets"


_TRAINING = BudgetMessages()


def device_bytes(config: Config, num_rows: int, num_keys: int, dtypes: tuple[str, str], penalises: bool = False) -> int:
    """Bytes on each device of `num_rows` slots, on the mesh in use."""
    shapes = jax.eval_shape(functools.partial(empty, config, num_rows, num_keys, dtypes, penalises))
    return parallel.device_bytes(parallel.placed_shapes(shapes, shapes.axes(config)))


def plan(
    config: Config,
    shapes: Shapes,
    wanted: int,
    budget: float,
    dtypes: tuple[str, str],
    penalises: bool = False,
    messages: BudgetMessages = _TRAINING,
) -> int:
    """The number of slots to make: `wanted`, or as many as fit in `budget` bytes of each device (infinity: no limit).

    Slots come in multiples of the devices over which rows are divided. Raises ConfigError, which says by how much, if
    not even one for each fits.
    """
    unit = parallel.num_shards("batch")
    one, two = (device_bytes(config, count * unit, shapes.num_keys, dtypes, penalises) for count in (1, 2))
    fixed, each = 2 * one - two, two - one
    fitting = math.floor(min(-(-wanted // unit), (budget - fixed) / each))
    if fitting < 1:
        given = messages.budget.format(given=budget / 1e9)
        advice = messages.advice.format(need=math.ceil(one / 1e6) / 1e3)  # rounded up: less would be refused again
        raise ConfigError(
            f"{given}: a rollout of {shapes.buckets[-1]} + {shapes.max_new_tokens} tokens keeps {one / 1e9:.3g} GB, "
            f"{(one - budget) / 1e9:.3g} GB more: {advice}"
        )
    return fitting * unit


def free_budget(config: Config, params: dict[str, Any], num_rows: int) -> float:
    """Bytes of each device that caches may take next to the loaded `params`, on the mesh in use; infinity if devices do
    not report their free memory (CPUs).

    MARGIN and the decoding weights are subtracted.
    """
    free = least_free(jax.tree.leaves(params)[0].sharding.addressable_devices)
    return free if math.isinf(free) else (1 - MARGIN) * (free - _weight_bytes(config, params, num_rows))


def least_free(devices: Iterable[Any]) -> float:
    """The bytes that are free on the fullest of these devices; infinity if they do not report it (CPUs)."""
    return min(_free_bytes(device) for device in devices)


def _free_bytes(device: Any) -> float:
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit", math.inf) - stats.get("bytes_in_use", 0)


def _weight_bytes(config: Config, params: dict[str, Any], num_rows: int) -> int:
    """Bytes on each device of the decoding weights: the copies, and while a chunk runs all weights that are cut by
    width, which XLA gathers before the loop."""
    axes, shards = decode_weights.weight_axes(config.text, params["text"]), parallel.num_shards("embed")
    copied = jax.eval_shape(lambda: decode_weights.join(params["text"], config.text, num_rows))
    total = parallel.device_bytes(parallel.placed_shapes(copied, {name: axes[name] for name in copied}))
    if shards > 1:
        read = copied | decode_weights.uncopied(params["text"], num_rows)
        total += shards * parallel.device_bytes(parallel.placed_shapes(read, {name: axes[name] for name in read}))
    return total
