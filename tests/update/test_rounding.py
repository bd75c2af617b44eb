"""Stochastic rounding: its mean is the number itself, and numbers of bfloat16 are unchanged."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zppo_jax.update import rounding

NUM_DRAWS = 20_000
SEED_2 = jnp.asarray([0x9E3779B9, 0x7F4A7C15], jnp.uint32)


def drawn(x: Any) -> np.ndarray:
    """Rounds the numbers [N] many times: [NUM_DRAWS, N], in float64."""
    draw = jax.jit(lambda x: rounding.stochastic(jnp.broadcast_to(x, (NUM_DRAWS, *x.shape)), jnp.bfloat16, SEED_2))
    return np.asarray(draw(jnp.asarray(x, jnp.float32)), np.float64)


def neighbours(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of bfloat16 next to those of float32, towards zero and away from it."""
    near = np.asarray(x, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return near.view(np.float32).astype(np.float64), (near + np.uint32(1 << 16)).view(np.float32).astype(np.float64)


def every_bfloat16() -> jax.Array:
    return jax.lax.bitcast_convert_type(jnp.arange(1 << 16, dtype=jnp.uint16), jnp.bfloat16)


@pytest.mark.parametrize("size", [1.0, 0.02, 1e-13, 1e30])
def test_the_mean_is_the_number(size):
    """Within five standard errors of NUM_DRAWS fair draws."""
    x = (size * np.random.default_rng(0).normal(size=200)).astype(np.float32)
    near, far = neighbours(x)
    found = drawn(x)
    assert ((found == near) | (found == far)).all()
    step, share = np.abs(far - near), (x - near) / (far - near)
    error = step * np.sqrt(share * (1 - share) / NUM_DRAWS)
    assert (np.abs(found.mean(0) - x) <= 5 * error).all()
    assert np.abs((found.mean(0) - x) / step).mean() < 0.005, "to the nearest it is 0.25"


def test_what_bfloat16_holds_stays_to_the_bit():
    """All 65,536 of them: zeros of both signs, the largest, infinities; NaN stays NaN. Subnormal numbers too."""
    x = every_bfloat16()
    found = jax.jit(lambda x: rounding.stochastic(x.astype(jnp.float32), jnp.bfloat16, SEED_2))(x)
    assert found.dtype == jnp.bfloat16
    nan = np.isnan(np.asarray(x, np.float32))
    assert nan.sum() == 2 * 127 and np.isnan(np.asarray(found, np.float32)[nan]).all()
    bits = np.asarray(jax.lax.bitcast_convert_type(found, jnp.uint16))
    np.testing.assert_array_equal(bits[~nan], np.arange(1 << 16, dtype=np.uint16)[~nan])


def test_every_nan_of_float32_stays_one():
    """Also those whose bits are all ones, where an addition would carry into the sign."""
    bits = jnp.asarray([0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF], jnp.uint32)
    assert np.isnan(drawn(jax.lax.bitcast_convert_type(bits, jnp.float32))).all()


def test_infinity_is_reached_as_often_as_it_should():
    """Never from the largest of bfloat16; from a quarter of the way to 2^128 in a quarter of the draws."""
    largest = float(jnp.finfo(jnp.bfloat16).max)
    found = drawn([largest, -largest, largest + (2.0**128 - largest) / 4])
    np.testing.assert_array_equal(found[:, :2], np.broadcast_to([largest, -largest], (NUM_DRAWS, 2)))
    assert 0.23 < np.isinf(found[:, 2]).mean() < 0.27


def test_other_dtypes_are_left_alone():
    tree = {"a": jnp.float32([0.1, 0.2]), "count": jnp.int32(3)}
    found = rounding.stochastic_like(tree, tree, 0, jnp.int32(0))
    assert found["a"] is tree["a"] and found["count"] is tree["count"]


def test_the_bits_come_from_purpose_count_and_leaf():
    """The same three give the same bits, any other one gives others."""
    tree = {name: jnp.full(1000, 1.001, jnp.float32) for name in "ab"}
    like = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)

    def made(purpose: int, count: int) -> dict[str, np.ndarray]:
        found = jax.jit(rounding.stochastic_like, static_argnums=2)(tree, like, purpose, count)
        return {name: np.asarray(x, np.float32) for name, x in found.items()}

    first = made(0, 5)
    np.testing.assert_array_equal(first["a"], made(0, 5)["a"])
    for other in (first["b"], made(1, 5)["a"], made(0, 6)["a"]):
        assert 0.1 < np.mean(first["a"] != other) < 0.5


def test_rounding_is_not_left_out_by_the_compiler():
    """To bfloat16 and back to float32 in one program."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=1000), jnp.float32)
    near = jax.jit(lambda x: rounding.nearest(x, jnp.bfloat16).astype(jnp.float32))(x)
    np.testing.assert_array_equal(near, np.asarray(np.asarray(x).astype(jnp.bfloat16), np.float32))
    lot = jax.jit(lambda x: rounding.stochastic(x, jnp.bfloat16, SEED_2).astype(jnp.float32))(x)
    assert not (np.asarray(lot).view(np.uint32) & 0xFFFF).any() and 0.2 < np.mean(np.asarray(lot) != near) < 0.3


# ---------------------------------------------------------------- the bits


def standard_errors(x: np.ndarray, axis: int | None = None) -> np.ndarray:
    """The distance from zero, in standard errors, of the mean of numbers of variance 1."""
    count = x.size if axis is None else x.shape[axis]
    return np.abs(x.mean(axis)) * np.sqrt(count)


def uniform(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """The bits as numbers of mean 0 and variance 1."""
    seed_2 = np.random.default_rng(seed).integers(0, 1 << 32, 2, np.uint32)
    bits = np.asarray(jax.jit(rounding.random_bits, static_argnums=1)(seed_2, shape), np.float64)
    assert bits.min() >= 0 and bits.max() < 1 << 16
    return (bits - (2**16 - 1) / 2) * np.sqrt(12.0) / 2**16


@pytest.mark.parametrize("shape", [(1 << 20,), (1024, 1024), (4, 512, 512)])
def test_the_bits_of_an_update_are_even_and_unlike_their_neighbours(shape):
    """Each of them, and pairs at the distances of rows and of powers of two: within five standard errors."""
    for seed in range(5):
        x = uniform(seed, shape).ravel()
        assert standard_errors(x) < 5 and standard_errors((x**2 - 1) / 0.9) < 5
        for distance in (1, 2, 3, 64, 512, 1024, 4096, 1 << 16, 1 << 18):
            assert standard_errors(x[:-distance] * x[distance:]) < 5, distance


def test_the_bits_of_an_element_are_even_and_unlike_the_last_updates():
    x_UN = np.stack([uniform(seed, (500,)) for seed in range(1000)])
    for one in (x_UN, x_UN[1:] * x_UN[:-1], x_UN[2:] * x_UN[:-2]):
        assert standard_errors(one, 0).max() < 5
        assert np.mean(standard_errors(one, 0) ** 2) < 1.3, "as far off as chance is, not further"
