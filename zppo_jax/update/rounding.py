"""Float32 numbers stored in a narrower dtype: as its nearest number, or at random as one of two neighbours.

To the nearest, every change smaller than half the distance between two numbers is lost every time: bfloat16 keeps
8 bits, so v * 0.999 is v again. By lot, up with the probability that is the part cut off, the mean is the number itself
and small changes arrive on average (stochastic rounding: Gupta et al., arXiv:1502.02551).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

_BITS_OF_BFLOAT16 = 0xFFFF0000
"""Those bits of a float32 number that bfloat16 has too."""


def nearest(x: jax.Array, dtype: Any) -> jax.Array:
    """`x` in float32 as the nearest number of `dtype`; of two as near, the even one."""
    kind = jnp.finfo(dtype)
    # Not the cast alone: XLA may leave out a cast there and back, for better precision.
    return jax.lax.reduce_precision(x, kind.nexp, kind.nmant).astype(dtype)


def stochastic(x: jax.Array, dtype: Any, seed_2: jax.Array) -> jax.Array:
    """`x` in float32 as a number of `dtype`, float32 or bfloat16, at random so that the mean is `x`.

    What bfloat16 holds stays what it is, infinities and NaN too; between its largest number and 2^128, infinity stands
    for 2^128. In integers (16 random bits added below bfloat16's last bit, then cut off), so that XLA cannot take it
    for a cast to leave out. `seed_2` are two random words.
    """
    if x.dtype == dtype:
        return x
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + random_bits(seed_2, x.shape)
    rounded = jax.lax.bitcast_convert_type(bits & jnp.uint32(_BITS_OF_BFLOAT16), jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(dtype)


def stochastic_like(tree: Any, like: Any, purpose: int, count: jax.Array) -> Any:
    """Each leaf by `stochastic` in the dtype of its place in `like`; a leaf that has it already stays.

    The bits come from (purpose, count, number of the leaf) and the element's place in the whole array: the same after a
    resume and on every mesh, and each device makes those of its own part.
    """
    leaves, structure = jax.tree.flatten(tree)
    key = jax.random.fold_in(jax.random.key(purpose), count)
    seeds_L2 = jax.random.bits(key, (len(leaves), 2), jnp.uint32)
    kinds = [leaf.dtype for leaf in jax.tree.leaves(like)]
    return structure.unflatten(map(stochastic, leaves, kinds, seeds_L2))


def random_bits(seed_2: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """16 random bits for each element, in uint32: a hash of its place in the array (triple32 of hash-prospector).

    Not `jax.random.bits`: its cipher makes AdamW with bfloat16 moments take four times as long on a CPU, 16 bytes of
    memory an element and three times the compilation. These bits need to be even and unlike their neighbours', no more.
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
