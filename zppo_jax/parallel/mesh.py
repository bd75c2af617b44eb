"""The mesh: `data` (replicas), `fsdp` (parameters and rows over the same devices), `tensor` (heads, mlp, vocabulary).

The only place that makes meshes; the names of their axes are used in rules.py and nowhere else.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

AXES = ("data", "fsdp", "tensor")


def mesh_shape(num_devices: int, data: int = 1, fsdp: int = -1, tensor: int = 1) -> tuple[int, int, int]:
    """The sizes of the three axes; one of them may be -1, which takes the devices that the others leave.

    Raises ValueError if the product is not the number of devices.
    """
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f"mesh sizes data={data}, fsdp={fsdp}, tensor={tensor}: positive, and at most one -1")
    given = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and num_devices % given == 0:
        sizes[sizes.index(-1)] = num_devices // given
    if -1 in sizes or math.prod(sizes) != num_devices:
        raise ValueError(
            f"mesh data={data} x fsdp={fsdp} x tensor={tensor} does not use {num_devices} devices exactly: "
            "set data, fsdp and tensor so that their product is that number (-1, once, takes the rest)"
        )
    return sizes[0], sizes[1], sizes[2]


def decoding_shape(num_devices: int, num_heads: int, data: int, fsdp: int, tensor: int) -> tuple[int, int, int]:
    """The axes of a mesh that decodes. A tensor axis of 0 is chosen so that it cuts weights and caches alike: all
    devices that the other axes leave, if these have sizes, else as many as divide both them and the key-value heads.

    Over more devices keys and values would be whole on each. The other devices hold copies of the weights, and other
    rows. Sizes of -1 stay (see `mesh_shape`).
    """
    given = [size for size in (data, fsdp) if size > 0]
    largest = -1 if len(given) == 2 else math.gcd(num_devices // math.prod(given), num_heads)
    return data, fsdp, tensor or largest


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Makes a mesh of `devices` (default: all of all processes); neighbours along `tensor` are nearest neighbours.

    Raises ValueError if they do not make a mesh of that shape, or if chips of a TPU slice are not a block of it.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(len(devices), data, fsdp, tensor)
    try:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    except AssertionError as error:  # that is how it says so
        raise ValueError(
            f"{len(devices)} chips that are not a block of the TPU slice: take half of a host's"
        ) from error
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def reshaped(mesh: Mesh, data: int = 1, fsdp: int = -1, tensor: int = 1) -> Mesh:
    """A mesh of the same devices in the same order and another shape, so that one program may read arrays of both; the
    mesh itself if it has that shape."""
    shape = mesh_shape(mesh.size, data, fsdp, tensor)
    return mesh if shape == mesh.devices.shape else Mesh(mesh.devices.reshape(shape), AXES, axis_types=mesh.axis_types)


def abstract_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1) -> AbstractMesh:
    """A mesh without devices, to plan shardings of a model that this machine could not hold."""
    return AbstractMesh((data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * len(AXES))


@contextlib.contextmanager
def use(mesh: Mesh | None) -> Iterator[None]:
    """Trace and run under `mesh`, so that `rules.constrain` knows it; None changes nothing.

    The context belongs to the thread: code that compiles in another thread must enter it there.
    """
    if mesh is None:
        yield
        return
    with jax.set_mesh(mesh):
        yield
