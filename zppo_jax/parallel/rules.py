"""Logical axes onto mesh axes: one table for parameters, activations and caches.

An array axis whose size the mesh axes do not divide stays whole, which is always right and sometimes wasteful: two
key-value heads over a tensor axis of four are replicated on every device. `undivided` lists these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Axes = tuple[str | None, ...]
MeshAxes = tuple[str, ...]

RULES: dict[str, tuple[str, ...]] = {
    # Parameters: the model's width is cut over fsdp (gathered where it is used), heads and inner widths over tensor.
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "linear_heads": ("tensor",),
    "vision_embed": ("fsdp",),
    "vision_heads": ("tensor",),
    "vision_mlp": ("tensor",),
    # Activations and caches: rows over every device that is not a tensor neighbour.
    "batch": ("data", "fsdp"),
}


def partition_spec(axes: Axes, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
    """Where each axis of an array lies; `axes` names its last axes, leading axes of layers are never cut."""
    names: list[Any] = [None] * (len(shape) - len(axes))
    for name, size in zip(axes, shape[len(names) :], strict=True):
        axes_of_one = _mesh_axes(name, size, mesh)
        names.append(axes_of_one if len(axes_of_one) > 1 else next(iter(axes_of_one), None))
    while names and names[-1] is None:  # as the compiler writes it: else its results would be compiled for again
        names.pop()
    return P(*names)


def _mesh_axes(name: str | None, size: int, mesh: Mesh | AbstractMesh) -> MeshAxes:
    """The mesh axes of one array axis: as many of the rule's as divide its size, from the left."""
    chosen: MeshAxes = ()
    for axis in RULES[name] if name else ():
        if size % math.prod([mesh.shape[each] for each in (*chosen, axis)]) == 0:
            chosen = (*chosen, axis)
    return chosen


def shardings(mesh: Mesh | AbstractMesh, abstract: Any, axes: Any) -> Any:
    """A NamedSharding for each leaf of `abstract`; `axes` is the tree of their logical axes."""
    return jax.tree.map(
        lambda leaf, names: NamedSharding(mesh, partition_spec(names, leaf.shape, mesh)), abstract, axes
    )


def place(mesh: Mesh, values: Any, axes: Any) -> Any:
    """NumPy values (the same on every process) as arrays on the mesh; each device is given its own part only."""

    def one(value: Any, names: Axes) -> jax.Array:
        value = np.asarray(value)
        sharding = NamedSharding(mesh, partition_spec(names, value.shape, mesh))
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(one, values, axes)


def undivided(mesh: Mesh | AbstractMesh, abstract: Any, axes: Any) -> Iterator[str]:
    """What stays whole although a rule would cut it: "path: axis of size n over tensor=m"."""
    paths = jax.tree_util.tree_leaves_with_path(abstract)
    for (path, leaf), names in zip(paths, jax.tree.leaves(axes, is_leaf=_is_axes), strict=True):
        for name, size in zip(names, leaf.shape[len(leaf.shape) - len(names) :], strict=True):
            for axis in RULES[name] if name else ():
                if size % mesh.shape[axis]:
                    where = "/".join(str(part.key) for part in path)
                    yield f"{where}: axis {name} of size {size} is not divided by {axis}={mesh.shape[axis]}: replicated"


def describe(mesh: Mesh | AbstractMesh, abstract: Any, axes: Any) -> Iterator[str]:
    """What a person should know about arrays on several devices: the mesh, and what it could not cut."""
    if mesh.size > 1:
        yield "mesh " + " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
        yield from undivided(mesh, abstract, axes)


def _is_axes(value: Any) -> bool:
    return isinstance(value, tuple)


def in_use() -> bool:
    """Whether a mesh is in use where this is traced."""
    return not jax.sharding.get_abstract_mesh().empty


def num_shards(name: str) -> int:
    """Into how many parts the mesh in use cuts a logical axis, where its size allows."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in RULES[name])


def cut(name: str, size: int) -> tuple[MeshAxes, int]:
    """Which axes of the mesh in use cut a logical axis of that size, and the size of a part; without a mesh none do."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = () if mesh.empty else _mesh_axes(name, size, mesh)
    return axes, size // math.prod(mesh.shape[axis] for axis in axes)


def on_parts(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`function` run by each device of the mesh in use on its own parts of the arrays, as `cut` names them; without a
    mesh, itself. What it exchanges and whether its results agree where nothing cuts them, it sees to itself."""
    if not in_use():
        return function
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Says to the compiler where `x` lies, by the logical names of its last axes; nothing happens without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, partition_spec(axes, x.shape, mesh))


def constrain_tree(tree: Any, axes: Any) -> Any:
    """`constrain` for each leaf; `axes` is the tree of their logical axes."""
    return jax.tree.map(lambda leaf, names: constrain(leaf, *names), tree, axes)


def device_bytes(shapes: Any) -> int:
    """Bytes on each device of arrays, or of shapes that say where they lie."""

    def one(leaf: Any) -> int:
        sharding = getattr(leaf, "sharding", None)
        return math.prod(sharding.shard_shape(leaf.shape) if sharding else leaf.shape) * leaf.dtype.itemsize

    return sum(map(one, jax.tree.leaves(shapes)))


def placed_shapes(shapes: Any, axes: Any) -> Any:
    """Shapes of arrays that lie where the rules put them, to compile for; nothing is added without a mesh."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return shapes
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings(mesh, shapes, axes),
    )
