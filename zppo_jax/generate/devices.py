"""The devices that a model is loaded on, and their memory for caches."""

from __future__ import annotations

from typing import Any

import jax

from zppo_jax import parallel
from zppo_jax.command import Devices
from zppo_jax.errors import ConfigError
from zppo_jax.models import qwen3_5
from zppo_jax.rollout import memory
from zppo_jax.rollout.memory import BudgetMessages

_SHORTER = "lower --max_new_tokens or have shorter prompts (--max_pixels, and --max_prompt_tokens of a server)"
_GIVEN = BudgetMessages("--cache_gigabytes = {given:g}", f"raise it to {{need:g}} or more, or {_SHORTER}")
_FREE = BudgetMessages("{given:.3g} GB of each device are free for caches", f"{_SHORTER}, or take more devices")


def make_mesh(wanted: Devices, config: qwen3_5.Config) -> jax.sharding.Mesh | None:
    """Makes a mesh of all devices; None if there is only one, which needs no mesh. Raises ConfigError if `wanted` does
    not use exactly these.

    By default heads are divided as far as both weights and caches can be, and the other devices hold copies. `fsdp`
    would save memory only between the chunks of decoding: the compiler gathers what it divides before the loop.
    """
    heads = config.text.num_key_value_heads
    sizes = parallel.decoding_shape(jax.device_count(), heads, wanted.data, wanted.fsdp, wanted.tensor)
    try:
        mesh = parallel.make_mesh(*sizes)
    except ValueError as error:
        raise ConfigError(f"--mesh_data, --mesh_fsdp, --mesh_tensor: {error}") from error
    return mesh if mesh.size > 1 else None


def cache_budget(
    wanted: Devices, config: qwen3_5.Config, params: dict[str, Any], num_slots: int
) -> tuple[float, BudgetMessages]:
    """Bytes of each device for caches of up to `num_slots`, on the mesh in use, and the texts of errors about it."""
    if wanted.cache_gigabytes is not None:
        return 1e9 * wanted.cache_gigabytes, _GIVEN
    return memory.free_budget(config, params, num_slots), _FREE
