"""Log-probabilities read from chunks of the head, with a custom gradient, against the plain way."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.tiny import FAST_COMPILE
from zppo_jax.ops import vocabulary
from zppo_jax.ops.logprobs import target_logprobs
from zppo_jax.ops.vocabulary import chunk_rows, scaled_logits


def draw(seed=0, positions=(2, 5), size=8, vocabulary=40, num_banned=4, scale=2.0):
    """(hidden, head, targets that are not banned, banned, cotangent); `scale` is about that of the logits."""
    rng = np.random.default_rng(seed)
    hidden, cotangent = (
        jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in ((*positions, size), positions)
    )
    head = jnp.asarray(rng.standard_normal((vocabulary, size), np.float32) * np.float32(scale * size**-0.5))
    ids = rng.permutation(vocabulary)
    banned = np.isin(np.arange(vocabulary), ids[:num_banned])
    return hidden, head, jnp.asarray(rng.choice(ids[num_banned:], positions)), jnp.asarray(banned), cotangent


def plain(hidden, head, target, temperature, banned):
    return jnp.take_along_axis(distribution(hidden, head, temperature, banned), target[..., None], axis=-1)[..., 0]


def distribution(hidden, head, temperature, banned):
    logits = jnp.matmul(hidden, head.T, preferred_element_type=jnp.float32)
    return jax.nn.log_softmax(scaled_logits(logits, temperature, banned))


def run(function, hidden, head, target, temperature, banned, cotangent, **options):
    """Value and the gradients with respect to the hidden states and the head."""
    return _both(function, temperature, **options)(hidden, head, target, banned, cotangent)


@functools.cache
def _both(function, temperature, **options):
    """The program of `run`, once for all arrays of the same shapes."""

    def both(hidden, head, target, banned, cotangent):
        value, pull = jax.vjp(lambda h, w: function(h, w, target, temperature, banned, **options), hidden, head)
        return value, *pull(cotangent)

    # A CPU's compiler may leave out roundings to bfloat16 that an accelerator's would not.
    return jax.jit(both, compiler_options=FAST_COMPILE | {"xla_allow_excess_precision": False})


def require_equal(actual, expected, tolerance=1e-5):
    """Requires equality relative to the largest magnitude of each array."""
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
        largest = np.abs(other[np.isfinite(other)]).max(initial=0.0)
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * largest)


@settings(max_examples=20)
@given(
    st.integers(0, 2**32),
    st.lists(st.integers(1, 6), min_size=0, max_size=3),
    st.integers(1, 20),
    st.integers(2, 70),
    st.integers(1, 80),
    st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    st.floats(0, 0.9),
)
def test_values_and_gradients_equal_the_plain_ones(seed, positions, size, vocabulary, chunk, temperature, banned):
    hidden, head, target, banned, cotangent = draw(seed, tuple(positions), size, vocabulary, int(banned * vocabulary))
    arguments = (hidden, head, target, temperature, banned, cotangent)
    require_equal(run(target_logprobs, *arguments, chunk=chunk), run(plain, *arguments))


@pytest.mark.parametrize("chunk", [None, 1, 7, 13, 39, 40, 1000])
def test_any_chunk_gives_the_same(chunk):
    """Including one that leaves a rest, and two of which the last covers all but one row of the first."""
    hidden, head, target, banned, cotangent = draw()
    arguments = (hidden, head, target, 0.6, banned, cotangent)
    require_equal(run(target_logprobs, *arguments, chunk=chunk), run(plain, *arguments))


@pytest.mark.parametrize("chunk", [None, 16])
def test_a_banned_target_is_impossible_and_has_no_gradient(chunk):
    hidden, head, target, banned, cotangent = draw()
    target = target.at[0, 0].set(int(np.flatnonzero(banned)[0]))
    value, gradient, head_gradient = run(target_logprobs, hidden, head, target, 1.0, banned, cotangent, chunk=chunk)
    assert value[0, 0] == -jnp.inf and np.isfinite(value).sum() == value.size - 1
    assert np.isfinite(gradient).all() and not np.any(gradient[0, 0])
    # As if the position did not exist; banned rows of the head have no gradient either.
    nothing = cotangent.at[0, 0].set(0.0)
    allowed = target.at[0, 0].set(int(np.flatnonzero(~banned)[0]))
    expected = run(plain, hidden, head, allowed, 1.0, banned, nothing)
    require_equal((gradient, head_gradient), expected[1:])
    assert not np.any(head_gradient[banned])


@pytest.mark.parametrize("chunk", [None, 16])
def test_logits_of_ten_thousand(chunk):
    """Near ties of large logits: there float32 holds three digits after the point, and all of them count.

    Products are multiples of 2^-10 below 2^14, so that every sum of them is exact: the order of a processor's sums is
    not what is tested.
    """
    hidden, head, target, banned, cotangent = draw(scale=1e4)
    sign = jnp.sign(hidden[..., :1])
    hidden = jnp.concatenate([sign, jnp.round(hidden[..., 1:] * 1e-4 * 2**17) / 2**17], axis=-1)
    head = (jnp.round(head / 2**7) * 2**7).at[:, 0].set(jnp.where(jnp.arange(len(head)) % 2, 1e4, -1e4))
    arguments = (hidden, head, target, 1.0, banned, cotangent)
    actual, expected = run(target_logprobs, *arguments, chunk=chunk), run(plain, *arguments)
    assert -2.2e4 < expected[0].min() < -1e4 and -1.0 > expected[0].max() > -10.0
    require_equal(actual, expected)
    close = expected[0] > -100.0
    np.testing.assert_allclose(actual[0][close], expected[0][close], rtol=1e-5)


@pytest.mark.parametrize("chunk", [None, 16])
def test_a_tied_head_has_both_gradients(chunk):
    _, head, target, banned, cotangent = draw()

    def tied(function, **options):
        def loss(head):
            return jnp.sum(
                cotangent * function(jnp.take(head, target, axis=0) ** 2, head, target, 1.0, banned, **options)
            )

        return jax.jit(jax.grad(loss), compiler_options=FAST_COMPILE)(head)

    require_equal([tied(target_logprobs, chunk=chunk)], [tied(plain)])


@pytest.mark.parametrize("chunk", [None, 32])
def test_bfloat16_is_summed_in_float32(chunk):
    """Compared with float32 on the same numbers: values differ only by float32's rounding, gradients by the rounding of
    their dtype and of the slope's."""
    hidden, head, target, banned, cotangent = draw(positions=(64,), size=64, vocabulary=200)
    hidden, head = hidden.astype(jnp.bfloat16), head.astype(jnp.bfloat16)
    value, *gradients = run(target_logprobs, hidden, head, target, 1.0, banned, cotangent, chunk=chunk)
    exact = (hidden.astype(jnp.float32), head.astype(jnp.float32), target, 1.0, banned, cotangent)
    expected, *expected_gradients = run(plain, *exact)
    require_equal([value], [expected])
    require_equal(gradients, [gradient.astype(jnp.bfloat16) for gradient in expected_gradients], tolerance=2**-7)


def compiled(function, num_positions, size, vocabulary, **options) -> Any:
    """The program of the value and both gradients, for shapes alone."""
    hidden, head = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((num_positions, size), (vocabulary, size)))
    target, banned = jax.ShapeDtypeStruct((num_positions,), jnp.int32), jax.ShapeDtypeStruct((vocabulary,), jnp.bool)

    def loss(hidden, head, target, banned):
        return jnp.sum(function(hidden, head, target, 1.0, banned, **options))

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(hidden, head, target, banned).compile()


def temporary_gib(program) -> float:
    return program.memory_analysis().temp_size_in_bytes / 2**30


def test_the_largest_vocabulary_needs_no_array_of_the_logits():
    shape = (2048, 1024, 248_320)
    ours, naive = (temporary_gib(compiled(function, *shape)) for function in (target_logprobs, plain))
    print({"ours": ours, "naive": naive})
    assert ours < 0.15 < 3.5 < naive


def test_a_frozen_head_has_no_gradient_written():
    """It is not used, so the compiler should leave it out; if XLA did not, frozen training would pay for it."""

    def loss(hidden, head):
        return jnp.sum(target_logprobs(hidden, head, jnp.zeros(64, jnp.int32), 1.0, jnp.zeros(4096, bool), chunk=512))

    hidden, head = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 32), (4096, 32)))
    program: Any = jax.jit(jax.grad(loss)).lower(hidden, head).compile()
    assert program.memory_analysis().temp_size_in_bytes < 4096 * 32 * 4


@pytest.mark.parametrize(("chunk", "num_kept"), [(None, 1), (16, 0)])
def test_small_logits_are_kept_whole_and_those_of_chunks_are_not(chunk, num_kept):
    hidden, head, target, banned, _ = draw(positions=(64,))
    _, pull = jax.vjp(lambda h, w: target_logprobs(h, w, target, 1.0, banned, chunk=chunk), hidden, head)
    assert sum(leaf.size >= 64 * 16 and leaf.shape[0] == 64 for leaf in jax.tree.leaves(pull)) == num_kept


def test_the_backward_pass_of_kept_logits_holds_two_arrays_of_their_size():
    temporary = temporary_gib(compiled(target_logprobs, 256, 64, 8192))
    assert temporary < 2.2 * 256 * 8192 * 4 / 2**30 < 2.9 / 2.2 * temporary_gib(compiled(plain, 256, 64, 8192))


@pytest.mark.parametrize("num_positions", [1, 512, 513, 2048, 16_384])
@pytest.mark.parametrize("num_rows", [512, 4096, 248_320 // 4, 248_320])
def test_chunks_are_as_large_as_their_budget(num_positions, num_rows):
    rows = chunk_rows(num_positions, num_rows)
    if 4 * num_positions * num_rows <= vocabulary.KEPT_BYTES:
        assert rows == num_rows
    else:
        assert rows % 256 == 128
        assert 0.9 * vocabulary.CHUNK_BYTES < 4 * num_positions * rows < 1.1 * vocabulary.CHUNK_BYTES or rows == 2176
