"""The places of each host's rows, when hosts share a mesh in any order of its devices."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from jax.sharding import Mesh

from zppo_jax import parallel
from zppo_jax.update import rows


def mesh_of(hosts: list[int], tensor: int) -> Mesh:
    """A minimal mesh: devices that name their host, with neighbours along `tensor` side by side."""
    devices = np.asarray([SimpleNamespace(process_index=host) for host in hosts]).reshape(1, -1, tensor)
    return cast(Mesh, SimpleNamespace(devices=devices, shape={"tensor": tensor}))


def test_a_hosts_parts_of_the_batch_by_their_place():
    assert parallel.host_shards(mesh_of([0, 1, 1, 0], 1)) == [0, 3]
    assert parallel.host_shards(mesh_of([1, 1, 0, 0, 1, 1, 0, 0], 2)) == [1, 3]
    assert parallel.hosts_of(mesh_of([3, 0, 3, 1], 2)) == [0, 1, 3]
    with pytest.raises(ValueError, match=r"tensor axis lie on several hosts: lower mesh\.tensor"):
        parallel.host_shards(mesh_of([0, 1, 0, 1], 2))


@pytest.mark.parametrize("parts", [[0, 1], [2, 3], [0, 3], [1, 3]])
def test_features_are_found_where_they_lie_among_those_of_all_hosts(parts):
    """Two hosts with two parts each; a part holds the features of two rows of patches, three of each."""
    own_features = np.random.default_rng(0).normal(size=(12, 4))
    everywhere = np.full((24, 4), np.nan)
    for place, part in enumerate(parts):
        everywhere[6 * part : 6 * part + 6] = own_features[6 * place : 6 * place + 6]
    own_BT = np.asarray([[0, 5, -1, 6], [11, -1, 7, 2]], np.int32)
    joined_BT = rows.joined_features(own_BT, parts, num_features=12)
    shown: Any = own_BT >= 0
    assert (joined_BT[~shown] == -1).all() and joined_BT.dtype == np.int32
    np.testing.assert_array_equal(everywhere[joined_BT[shown]], own_features[own_BT[shown]])
