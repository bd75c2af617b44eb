"""Kernels that stay float8 in device memory: w = kernel * scale, one scale for each block of values.

A quantised kernel is a float8 array `kernel` with a float32 array `scale` beside it in the tree. Both have the same
axes with the same logical names; along each axis a scale covers equally many neighbours, so that heads may be separate.
Such a tree is only read: it is not trained and not saved. All other parameters have the model's dtype, in which it
computes: a kernel becomes what de-quantising while loading would have made of it, but only where a product reads it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from zppo_jax.models.qwen3_5.parameters import Params, flatten, unflatten

KERNEL, SCALE = "kernel", "scale"
DTYPE = jnp.float8_e4m3fn


class QuantisedError(ValueError):
    """A tree with float8 kernels where only plain parameters will do."""


def scale_of(path: str) -> str:
    """The path of the scale of a kernel."""
    return path.removesuffix(KERNEL) + SCALE


def kernels(flat: dict[str, Any]) -> list[str]:
    """The paths of the quantised kernels of a flat tree."""
    return [path for path in flat if path.rpartition("/")[2] == KERNEL and scale_of(path) in flat]


def is_quantised(params: Params) -> bool:
    return bool(kernels(flatten(params)))


def require_plain(params: Params, what: str) -> None:
    """Raises QuantisedError, which says what cannot be done, if a kernel is quantised."""
    found = kernels(flatten(params))
    if found:
        raise QuantisedError(
            f"{found[0]} and {len(found) - 1} other kernels are FP8, which {what}: load the checkpoint with "
            'weights="dequantised"'
        )


def with_scales(axes: Params, params: Params) -> Params:
    """Adds the logical axes of the scales that `params` has: those of their kernels."""
    flat = flatten(axes)
    return unflatten(flat | {scale_of(path): flat[path] for path in kernels(flatten(params))})


def dequantise(kernel: jax.Array, scale: jax.Array, dtype: Any) -> jax.Array:
    """Computes kernel * scale in float32, rounded once to `dtype`: the bits of a kernel that was de-quantised while
    loading."""
    for axis, (size, blocks) in enumerate(zip(kernel.shape, scale.shape, strict=True)):
        scale = jnp.repeat(scale, size // blocks, axis=axis)
    return (kernel.astype(jnp.float32) * scale).astype(dtype)


def dequantised(params: Params, dtype: Any) -> Params:
    """Replaces each quantised kernel by its value in `dtype`; a tree without any is returned as it is."""
    flat = flatten(params)
    found = kernels(flat)
    if not found:
        return params
    plain = {path: dequantise(flat[path], flat[scale_of(path)], dtype) for path in found}
    scales = {scale_of(path) for path in found}
    return unflatten({path: plain.get(path, leaf) for path, leaf in flat.items() if path not in scales})
