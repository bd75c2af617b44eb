"""Meshes of devices, and the one table that maps the logical axes of arrays to mesh axes."""

from __future__ import annotations

from zppo_jax.parallel.hosts import HostCopy, HostError, Hosts, connect, from_hosts, host_mesh, host_shards, hosts_of
from zppo_jax.parallel.mesh import AXES, abstract_mesh, decoding_shape, make_mesh, reshaped, use
from zppo_jax.parallel.rules import (
    MeshAxes,
    constrain,
    constrain_tree,
    cut,
    describe,
    device_bytes,
    in_use,
    num_shards,
    on_parts,
    partition_spec,
    place,
    placed_shapes,
    shardings,
    undivided,
)

__all__ = [
    "AXES",
    "HostCopy",
    "HostError",
    "Hosts",
    "MeshAxes",
    "abstract_mesh",
    "connect",
    "constrain",
    "constrain_tree",
    "cut",
    "decoding_shape",
    "describe",
    "device_bytes",
    "from_hosts",
    "host_mesh",
    "host_shards",
    "hosts_of",
    "in_use",
    "make_mesh",
    "num_shards",
    "on_parts",
    "partition_spec",
    "place",
    "placed_shapes",
    "reshaped",
    "shardings",
    "undivided",
    "use",
]
