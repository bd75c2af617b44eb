"""The mapping of logical axes to mesh axes: one table for parameters, activations and caches.

An array axis whose size the mesh axes do not divide stays whole, which is always correct and sometimes wasteful: two
key-value heads over a tensor axis of four are replicated on every device. `undivided` lists such axes.
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
    """The mesh axes of each axis of an array; `axes` names its last axes, leading axes of layers are never cut."""
    names: list[Any] = [None] * (len(shape) - len(axes))
    for name, size in zip(axes, shape[len(names) :], strict=True):
        axes_of_one = _mesh_axes(name, size, mesh)
        names.append(axes_of_one if len(axes_of_one) > 1 else next(iter(axes_of_one), None))
    while names and names[-1] is None:  # the compiler's form: another one would compile again
        names.pop()
    return P(*names)


def _mesh_axes(name: str | None, size: int, mesh: Mesh | AbstractMesh) -> MeshAxes:
    """The mesh axes of one array axis: as many of the rule's, from the left, as divide its size."""
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
    """Places NumPy values (the same on every process) on the mesh; each device gets only its own part."""

    def one(value: Any, names: Axes) -> jax.Array:
        value = np.asarray(value)
        sharding = NamedSharding(mesh, partition_spec(names, value.shape, mesh))
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(one, values, axes)


def undivided(mesh: Mesh | AbstractMesh, abstract: Any, axes: Any) -> Iterator[str]:
    """Yields the axes that stay whole although a rule would cut them: "path: axis of size n over tensor=m"."""
    paths = jax.tree_util.tree_leaves_with_path(abstract)
    for (path, leaf), names in zip(paths, jax.tree.leaves(axes, is_leaf=_is_axes), strict=True):
        for name, size in zip(names, leaf.shape[len(leaf.shape) - len(names) :], strict=True):
            for axis in RULES[name] if name else ():
                if size % mesh.shape[axis]:
                    where = "/".join(str(part.key) for part in path)
                    yield f"{where}: axis {name} of size {size} is not divided by {axis}={mesh.shape[axis]}: replicated"


def describe(mesh: Mesh | AbstractMesh, abstract: Any, axes: Any) -> Iterator[str]:
    """Yields lines for the user about arrays on several devices: the mesh, and the axes that it could not cut."""
    if mesh.size > 1:
        yield "mesh " + " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
        yield from undivided(mesh, abstract, axes)


def _is_axes(value: Any) -> bool:
    return isinstance(value, tuple)


def in_use() -> bool:
    """Whether a mesh is in use during this trace."""
    return not jax.sharding.get_abstract_mesh().empty


def num_shards(name: str) -> int:
    """The number of parts into which the mesh in use cuts a logical axis, if its size allows."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in RULES[name])


def cut(name: str, size: int) -> tuple[MeshAxes, int]:
    """The axes of the mesh in use that cut a logical axis of that size, and the size of a part; none without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = () if mesh.empty else _mesh_axes(name, size, mesh)
    return axes, size // math.prod(mesh.shape[axis] for axis in axes)


def on_parts(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """Maps `function` over the devices of the mesh in use: each runs it on its own parts of the arrays, as `cut` names
    them. Without a mesh, returns `function`. The function itself must do the exchanges between devices, and must give
    equal results along axes that are not cut."""
    if not in_use():
        return function
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains the sharding of `x` by the logical names of its last axes; does nothing without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, partition_spec(axes, x.shape, mesh))


def constrain_tree(tree: Any, axes: Any) -> Any:
    """Applies `constrain` to each leaf; `axes` is the tree of their logical axes."""
    return jax.tree.map(lambda leaf, names: constrain(leaf, *names), tree, axes)


def device_bytes(shapes: Any) -> int:
    """Bytes on each device of arrays, or of shapes with shardings."""

    def one(leaf: Any) -> int:
        sharding = getattr(leaf, "sharding", None)
        return math.prod(sharding.shard_shape(leaf.shape) if sharding else leaf.shape) * leaf.dtype.itemsize

    return sum(map(one, jax.tree.leaves(shapes)))


def placed_shapes(shapes: Any, axes: Any) -> Any:
    """Adds the shardings of the rules to shapes, to compile for; adds nothing without a mesh."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return shapes
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings(mesh, shapes, axes),
    )
