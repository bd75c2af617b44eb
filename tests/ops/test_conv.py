"""The causal depthwise convolution and its carried context, against NumPy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from zppo_jax.ops.conv import causal_conv, conv_step, next_context


def draw(rows=3, tokens=11, channels=5, taps=4):
    shapes = (rows, tokens, channels), (taps, channels), (rows, taps - 1, channels)
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in shapes)


def numpy_conv(x, kernel, context):
    before, kernel = np.concatenate([context, x], axis=1), np.asarray(kernel)
    return np.stack(
        [
            np.stack([np.convolve(before[b, :, c], kernel[::-1, c], mode="valid") for c in range(x.shape[2])], axis=-1)
            for b in range(x.shape[0])
        ]
    )


@pytest.mark.parametrize(("tokens", "taps"), [(11, 4), (1, 4), (2, 4), (5, 2)])
def test_causal_conv_equals_numpy(tokens, taps):
    x, kernel, context = draw(tokens=tokens, taps=taps)
    np.testing.assert_allclose(causal_conv(x, kernel, context), numpy_conv(x, kernel, context), atol=1e-5)


def test_a_token_never_sees_the_next_one():
    x, kernel, context = draw()
    changed = x.at[:, 6:].add(100.0)
    before, after = causal_conv(x, kernel, context), causal_conv(changed, kernel, context)
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert (np.asarray(before[:, 6]) != np.asarray(after[:, 6])).all()


def test_next_context_is_taken_at_each_rows_true_end():
    x, _, context = draw()
    ends = np.asarray([11, 5, 0])
    expected = [np.concatenate([context[b], x[b, :end]])[-3:] for b, end in enumerate(ends)]
    np.testing.assert_array_equal(next_context(x, context, jnp.asarray(ends)), expected)
    short = next_context(x, context, jnp.asarray([2, 1, 3]))
    np.testing.assert_array_equal(short[0], np.concatenate([context[0, 2:], x[0, :2]]))


@pytest.mark.parametrize("cut", [1, 2, 7])
def test_pieces_equal_the_whole(cut):
    x, kernel, context = draw()
    whole = causal_conv(x, kernel, context)
    first = causal_conv(x[:, :cut], kernel, context)
    middle = next_context(x[:, :cut], context, jnp.full(3, cut))
    second = causal_conv(x[:, cut:], kernel, middle)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, atol=1e-6)


def test_a_step_is_a_sequence_of_one_token():
    x, kernel, context = draw(tokens=1)
    out, after = conv_step(x[:, 0], kernel, context)
    np.testing.assert_allclose(out, causal_conv(x, kernel, context)[:, 0], atol=1e-6)
    np.testing.assert_array_equal(after, next_context(x, context, jnp.full(3, 1)))


def test_the_result_has_the_dtype_of_its_input():
    x, kernel, context = draw()
    out = causal_conv(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), context)
    assert out.dtype == jnp.bfloat16
