"""Meshes, and the table from logical axes to mesh axes; the large sizes on an abstract mesh."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from zppo_jax import parallel
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import sizes, vlm
from zppo_jax.models.qwen3_5.parameters import count
from zppo_jax.parallel.mesh import mesh_shape
from zppo_jax.parallel.rules import RULES

MESH = parallel.abstract_mesh(data=1, fsdp=8, tensor=4)


@pytest.mark.parametrize(
    ("given", "expected"),
    [((1, -1, 1), (1, 8, 1)), ((2, -1, 2), (2, 2, 2)), ((-1, 2, 4), (1, 2, 4)), ((2, 2, 2), (2, 2, 2))],
)
def test_one_axis_takes_the_rest(given, expected):
    assert mesh_shape(8, *given) == expected


@pytest.mark.parametrize("given", [(1, 1, 1), (3, -1, 1), (2, 2, 4), (-1, -1, 1), (0, -1, 1)])
def test_a_mesh_that_does_not_use_every_device_is_refused(given):
    with pytest.raises(ValueError, match="mesh"):
        mesh_shape(8, *given)


def test_an_axis_that_does_not_divide_stays_whole():
    assert parallel.partition_spec(("embed", "kv_heads", None), (5, 1024, 2, 256), MESH) == P(None, "fsdp")
    assert parallel.partition_spec(("embed", "kv_heads", None), (5, 1024, 4, 256), MESH) == P(None, "fsdp", "tensor")
    assert parallel.partition_spec(("batch", None), (8, 3), MESH) == P(("data", "fsdp"))
    assert parallel.partition_spec(("batch", None), (7, 3), MESH) == P("data"), "written as the compiler does"


@pytest.mark.parametrize("size", ["0.8B", "2B", "4B", "9B", "27B"])
def test_every_size_is_cut_over_eight_by_four_devices(size):
    """One device holds close to a 32nd; only small vectors and axes that do not divide stay whole."""
    config, abstract = sizes.get(size), qwen3_5.abstract_params(size)
    axes = vlm.logical_axes(config)
    shardings = parallel.shardings(MESH, abstract, axes)
    held = jax.tree.map(lambda leaf, sharding: math.prod(sharding.shard_shape(leaf.shape)), abstract, shardings)
    assert 1 / 32 <= sum(jax.tree.leaves(held)) / count(abstract) < 1.25 / 32
    whole = list(parallel.undivided(MESH, abstract, axes))
    assert ("text/full/mixer/k/kernel: axis kv_heads of size 2 is not divided by tensor=4: replicated" in whole) == (
        config.text.num_key_value_heads % 4 != 0
    )


def test_every_logical_axis_has_a_rule():
    for names in jax.tree.leaves(vlm.logical_axes(sizes.get("0.8B")), is_leaf=lambda x: isinstance(x, tuple)):
        assert {name for name in names if name} <= RULES.keys()


def test_without_a_mesh_nothing_is_cut():
    assert parallel.cut("batch", 8) == ((), 8)
    assert parallel.on_parts(max, None, None) is max


def test_constrain_does_nothing_without_a_mesh():
    x = jnp.ones((2, 3))
    assert parallel.constrain(x, "batch", None) is x
