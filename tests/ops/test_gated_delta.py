"""The chunked delta rule against the token-by-token one, and the triangular inverse against NumPy."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.tiny import FAST_COMPILE
from zppo_jax.ops.gated_delta import (
    BEGINS,
    BRANCHES,
    CONTINUES,
    chunk_length,
    gated_delta_chunked,
    gated_delta_recurrent,
    gated_delta_step,
    gated_delta_tree,
    inverse_unit_lower,
    longest_chunk,
)

LENGTHS = (1, 2, 3, 17, 63, 64, 65, 130)
LONGEST = max(LENGTHS)
NAMES = ("q", "k", "v", "g", "beta", "state")


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def draw(num_tokens, seed=0, rows=2, heads=2, key_dim=8, value_dim=6):
    """Random arguments: normalised queries and keys, decays from 1 to 1e-3 a token, and a state to continue."""
    rng = np.random.default_rng(seed)
    shape = (rows, num_tokens, heads)
    q = unit(rng.standard_normal((*shape, key_dim))) * key_dim**-0.5
    k = unit(rng.standard_normal((*shape, key_dim)))
    v = rng.standard_normal((*shape, value_dim))
    g = -(10.0 ** rng.uniform(-4, 0.8, shape))
    beta = rng.uniform(0.0, 1.0, shape)
    state = rng.standard_normal((rows, heads, key_dim, value_dim))
    return tuple(np.asarray(x, np.float32) for x in (q, k, v, g, beta, state))


def numpy_rule(q, k, v, g, beta, state):
    """The four lines of the definition in float64."""
    q, k, v, g, beta, state = (np.asarray(x, np.float64) for x in (q, k, v, g, beta, state))
    out = np.zeros(v.shape)
    for t in range(q.shape[1]):
        state = state * np.exp(g[:, t])[..., None, None]
        delta = beta[:, t][..., None] * (v[:, t] - np.einsum("bnkv,bnk->bnv", state, k[:, t]))
        state = state + np.einsum("bnk,bnv->bnkv", k[:, t], delta)
        out[:, t] = np.einsum("bnkv,bnk->bnv", state, q[:, t])
    return out, state


def values_and_gradients(rule):
    """Output, state and the gradients of a random scalar of both for all six arguments, compiled once a shape."""

    def objective(arguments, out_weights, state_weights):
        out, state = rule(*arguments)
        return jnp.sum(out * out_weights) + jnp.sum(state * state_weights), (out, state)

    return jax.jit(jax.grad(objective, has_aux=True), compiler_options=FAST_COMPILE)


chunked, recurrent = values_and_gradients(gated_delta_chunked), values_and_gradients(gated_delta_recurrent)


def weights_of(num_tokens):
    rng = np.random.default_rng(9)
    out, state = rng.standard_normal((2, LONGEST, 2, 6)), rng.standard_normal((2, 2, 8, 6))
    return np.asarray(out[:, :num_tokens], np.float32), np.asarray(state, np.float32)


def pad_tokens(x):
    """Pads to the longest length with zeros: g = beta = 0 is neutral; one compiled reference serves all."""
    return np.pad(x, [(0, 0), (0, LONGEST - x.shape[1])] + [(0, 0)] * (x.ndim - 2))


def compare_gradients(gradients, arguments, out_weights, state_weights):
    """Compares with those of the token-by-token rule, to 2e-5 of the largest; returns its output and state."""
    num_tokens = arguments[0].shape[1]
    padded = (*(pad_tokens(x) for x in arguments[:-1]), arguments[-1])
    found = recurrent(padded, pad_tokens(out_weights), state_weights)
    expected_gradients, (out, state) = jax.tree.map(np.asarray, found)  # a slice of jax's is a program
    for name, actual, expected in zip(NAMES, gradients, expected_gradients, strict=True):
        expected = expected if name == "state" else expected[:, :num_tokens]
        largest = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(actual, expected, atol=2e-5 * largest, err_msg=f"gradient of {name}")
    return out[:, :num_tokens], state


@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_chunked_equals_recurrent(num_tokens):
    arguments = draw(num_tokens, seed=num_tokens)
    out_weights, state_weights = weights_of(num_tokens)
    gradients, (out, state) = chunked(arguments, out_weights, state_weights)
    expected_out, expected_state = compare_gradients(gradients, arguments, out_weights, state_weights)
    np.testing.assert_allclose(out, expected_out, atol=1e-5)
    np.testing.assert_allclose(state, expected_state, atol=1e-5)


def test_recurrent_and_step_are_the_definition():
    arguments = draw(LONGEST)
    out, state = jax.jit(gated_delta_recurrent)(*arguments)
    expected_out, expected_state = numpy_rule(*arguments)
    np.testing.assert_allclose(out, expected_out, atol=1e-5)
    np.testing.assert_allclose(state, expected_state, atol=1e-5)
    one = draw(1)
    q, k, v, g, beta = (x[:, 0] for x in one[:-1])
    out, state = jax.jit(gated_delta_step)(q, k, v, g, beta, one[-1])
    expected_out, expected_state = numpy_rule(*one)
    np.testing.assert_allclose(out, expected_out[:, 0], atol=1e-6)
    np.testing.assert_allclose(state, expected_state, atol=1e-6)


@pytest.mark.parametrize("limit", [1, 4, 32, 128])
def test_the_chunk_limit_changes_nothing(limit):
    arguments = draw(70, seed=3)
    out, state = jax.jit(functools.partial(gated_delta_chunked, limit=limit), compiler_options=FAST_COMPILE)(*arguments)
    expected_out, expected_state = numpy_rule(*arguments)
    np.testing.assert_allclose(out, expected_out, atol=1e-5)
    np.testing.assert_allclose(state, expected_state, atol=1e-5)


TREES = (((2, (1, 2, 1)), (1, (3,))), ((1, (1, 2)), (2, (1, 1)), (2, ())), ((10, ()),))
"""For each row: the chunks of a trunk and of its branches, one trunk after the other; 10 in all."""


def layout(row):
    """Source and kind of each chunk, and the chunks [trunk, branch] of each sequence, the trunk alone first."""
    source, is_trunk, sequences = [], [], []
    for trunk, branches in row:
        trunk_chunks = list(range(len(source), len(source) + trunk))
        source += [BEGINS] + [CONTINUES] * (trunk - 1)
        is_trunk += [True] * trunk
        sequences.append(([], trunk_chunks))
        for length in branches:
            sequences.append((trunk_chunks, list(range(len(source), len(source) + length))))
            source += [BRANCHES] + [CONTINUES] * (length - 1)
            is_trunk += [False] * length
    return source, is_trunk, sequences


def test_a_tree_is_its_sequences_one_by_one_gradients_too():
    """Outputs of a trunk count once, and a trunk learns from all its branches."""
    size, rows = 4, [layout(row) for row in TREES]
    tokens: Any = draw(10 * size, seed=5, rows=len(rows))[:5]
    source_BC, is_trunk_BC = (np.array([row[part] for row in rows]) for part in (0, 1))
    weights = np.random.default_rng(6).standard_normal(tokens[2].shape).astype(np.float32)

    def one_by_one(*tokens: Any) -> Any:
        out = jnp.zeros_like(tokens[2])
        for row, (_, _, sequences) in enumerate(rows):
            for before, chunks in sequences:
                slots = np.concatenate([np.arange(size) + size * chunk for chunk in before + chunks])
                nothing = jnp.zeros((1, 2, 8, 6))
                q, k, v, g, beta = (x[row : row + 1, slots] for x in tokens)
                found, _ = gated_delta_recurrent(q, k, v, g, beta, nothing)
                out = out.at[row, slots[size * len(before) :]].set(found[0, size * len(before) :])
        return out

    def results(rule):
        def objective(*tokens):
            out = rule(*tokens)
            return jnp.sum(out * weights), out

        gradient = jax.grad(objective, argnums=tuple(range(5)), has_aux=True)
        return jax.jit(gradient, compiler_options=FAST_COMPILE)(*tokens)

    gradients, out = results(lambda q, k, v, g, beta: gated_delta_tree(q, k, v, g, beta, source_BC, is_trunk_BC))
    expected_gradients, expected = results(one_by_one)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for name, actual, wanted in zip(NAMES, gradients, expected_gradients, strict=False):
        largest = max(1.0, float(np.abs(wanted).max()))
        np.testing.assert_allclose(actual, wanted, atol=2e-5 * largest, err_msg=f"gradient of {name}")


def test_chunk_length_is_the_smallest_power_of_two_that_fits():
    assert [chunk_length(n) for n in (1, 2, 3, 17, 33, 64, 65, 1000)] == [1, 2, 4, 32, 64, 64, 64, 64]
    assert [chunk_length(n, 16) for n in (5, 16, 17)] == [8, 16, 16]


def test_the_published_heads_have_chunks_of_64_and_small_ones_of_32():
    assert [longest_chunk(size) for size in (16, 32, 64, 128, 256)] == [32, 32, 32, 64, 64]


@pytest.mark.parametrize("spread", [0.0, 1e-6, 1e-3])
def test_near_parallel_keys_that_never_decay_stay_exact(spread):
    """beta = 1, g = 0 and 64 equal keys: power-series inverses reach 1e30 here (MaxText#4577's form overflows)."""
    q, k, v, g, beta, state = draw(65, seed=4)
    k = unit(k[:, :1] + spread * k).astype(np.float32)
    arguments = (q, k, v, np.zeros_like(g), np.ones_like(beta), state)
    out_weights, state_weights = weights_of(65)
    gradients, (out, new_state) = chunked(arguments, out_weights, state_weights)
    expected_out, expected_state = numpy_rule(*arguments)
    np.testing.assert_allclose(out, expected_out, atol=1e-5)
    np.testing.assert_allclose(new_state, expected_state, atol=1e-5)
    compare_gradients(gradients, arguments, out_weights, state_weights)


def test_strong_decay_neither_overflows_nor_poisons_the_gradient():
    """64 tokens of g = -20 make ratios of e^1280 above the diagonal: masked before exp, they cannot become inf * 0."""
    q, k, v, g, beta, state = draw(65, seed=5)
    arguments = (q, k, v, np.full_like(g, -20.0), beta, state)
    gradients, (out, new_state) = chunked(arguments, *weights_of(65))
    expected_out, expected_state = numpy_rule(*arguments)
    np.testing.assert_allclose(out, expected_out, atol=1e-6)
    np.testing.assert_allclose(new_state, expected_state, atol=1e-6)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("place", ["before", "between", "after"])
def test_neutral_tokens_leave_no_trace(place):
    """Pads have g = beta = 0 and, here, garbage everywhere else."""
    q, k, v, g, beta, state = draw(65, seed=6)
    is_pad = np.zeros(65, bool)
    is_pad[{"before": slice(0, 20), "between": slice(30, 50), "after": slice(45, 65)}[place]] = True
    g, beta = (np.where(is_pad[:, None], 0, x).astype(np.float32) for x in (g, beta))
    _, (out, new_state) = chunked((q, k, v, g, beta, state), *weights_of(65))
    q, k, v, g, beta = (x[:, ~is_pad] for x in (q, k, v, g, beta))
    expected_out, expected_state = numpy_rule(q, k, v, g, beta, state)
    np.testing.assert_allclose(np.asarray(out)[:, ~is_pad], expected_out, atol=1e-5)
    np.testing.assert_allclose(new_state, expected_state, atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 8, 64])
def test_inverse_unit_lower_equals_numpy(length):
    strict = np.tril(np.random.default_rng(length).standard_normal((3, length, length)), -1) * 0.3
    inverse = jax.jit(inverse_unit_lower)(np.asarray(strict, np.float32))
    expected = np.linalg.inv(np.eye(length) + strict)
    np.testing.assert_allclose(inverse, expected, atol=2e-6 * np.abs(expected).max())


def test_the_gradient_of_the_inverse_stays_below_the_diagonal():
    """dS = -X^T G X^T, its strictly lower part, from NumPy's inverse."""
    rng = np.random.default_rng(0)
    strict, cotangent = np.tril(rng.standard_normal((8, 8)), -1), rng.standard_normal((8, 8))
    pulled = jax.jit(lambda strict, cotangent: jax.vjp(inverse_unit_lower, strict)[1](cotangent))
    (gradient,) = pulled(strict.astype(np.float32), cotangent.astype(np.float32))
    inverse = np.linalg.inv(np.eye(8) + strict)
    expected = np.tril(-inverse.T @ cotangent @ inverse.T, -1)
    np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max())


def test_inverse_of_all_ones_is_exact():
    """The matrix of 64 equal keys; its inverse is the identity minus the first subdiagonal, without rounding."""
    inverse = jax.jit(inverse_unit_lower)(np.tril(np.ones((64, 64), np.float32), -1))
    np.testing.assert_array_equal(inverse, np.eye(64) - np.eye(64, k=-1))
