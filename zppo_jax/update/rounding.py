"""Rounds float32 numbers to a narrower dtype: to the nearest number, or stochastically to one of two neighbours.

Rounding to nearest loses every change smaller than half the distance between two numbers, each time: bfloat16 keeps
8 bits, so v * 0.999 is v again. Stochastic rounding goes up with a probability equal to the fraction that is cut off:
the mean is the number itself, and small changes count on average (Gupta et al., arXiv:1502.02551).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

_BITS_OF_BFLOAT16 = 0xFFFF0000
"""The bits of a float32 number that bfloat16 has too."""


def nearest(x: jax.Array, dtype: Any) -> jax.Array:
    """Rounds `x`, in float32, to the nearest number of `dtype`; ties to even."""
    kind = jnp.finfo(dtype)
    # A cast alone is not enough: XLA may leave out a cast there and back, for better precision.
    return jax.lax.reduce_precision(x, kind.nexp, kind.nmant).astype(dtype)


def stochastic(x: jax.Array, dtype: Any, seed_2: jax.Array) -> jax.Array:
    """Rounds `x`, in float32, to a number of `dtype`, float32 or bfloat16, at random so that the mean is `x`.

    Numbers of bfloat16 are unchanged, infinities and NaN too; above its largest number, the upper neighbour 2^128 is
    represented by infinity. Done in integers (16 random bits added below bfloat16's last bit, then cut off), so that
    XLA cannot treat it as a cast and leave it out. `seed_2` are two random words.
    """
    if x.dtype == dtype:
        return x
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + random_bits(seed_2, x.shape)
    rounded = jax.lax.bitcast_convert_type(bits & jnp.uint32(_BITS_OF_BFLOAT16), jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(dtype)


def stochastic_like(tree: Any, like: Any, purpose: int, count: jax.Array) -> Any:
    """Rounds each leaf stochastically to the dtype of its place in `like`; a leaf that already has it is unchanged.

    The bits come from (purpose, count, number of the leaf) and the element's place in the whole array: the same after a
    resume and on every mesh, and each device makes those of its part.
    """
    leaves, structure = jax.tree.flatten(tree)
    key = jax.random.fold_in(jax.random.key(purpose), count)
    seeds_L2 = jax.random.bits(key, (len(leaves), 2), jnp.uint32)
    kinds = [leaf.dtype for leaf in jax.tree.leaves(like)]
    return structure.unflatten(map(stochastic, leaves, kinds, seeds_L2))


def random_bits(seed_2: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """16 random bits for each element, in uint32: a hash of its place in the array (triple32 of hash-prospector).

    Not `jax.random.bits`: its cipher makes AdamW with bfloat16 moments four times as slow on a CPU, with 16 bytes of
    memory per element and three times the compilation. Here it is enough that bits are uniform and independent of
    their neighbours'.
    """
    place = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    x = place ^ seed_2[0]
    x = (x ^ (x >> 17)) * jnp.uint32(0xED5AD4BB)
    x = (x ^ (x >> 11)) + seed_2[1]
    x = x * jnp.uint32(0xAC4C1B51)
    x = (x ^ (x >> 15)) * jnp.uint32(0x31848BAB)
    return (x ^ (x >> 14)) >> 16
