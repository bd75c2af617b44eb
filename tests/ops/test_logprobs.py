"""Log-probabilities with a gradient of their own, against the plain way."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zppo_jax.ops.logprobs import scaled_logits, target_logprobs

ROWS, TOKENS, SIZE, VOCABULARY = 2, 5, 8, 40


def draw():
    rng = np.random.default_rng(0)
    hidden = 2 * rng.standard_normal((ROWS, TOKENS, SIZE), np.float32)
    head = rng.standard_normal((VOCABULARY, SIZE), np.float32)
    banned = np.arange(VOCABULARY) >= 36
    return hidden, head, rng.integers(0, 36, (ROWS, TOKENS)), banned


def plain(hidden, head, target, temperature, banned):
    logprobs = jax.nn.log_softmax(scaled_logits(hidden @ head.T, temperature, banned))
    return jnp.take_along_axis(logprobs, target[..., None], axis=-1)[..., 0]


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_values_and_gradients_equal_the_plain_ones(temperature):
    hidden, head, target, banned = draw()
    cotangent = np.random.default_rng(1).standard_normal((ROWS, TOKENS), np.float32)
    results = []
    for function in (plain, target_logprobs):
        value, pull = jax.vjp(lambda h, w, f=function: f(h, w, target, temperature, banned), hidden, head)
        results.append((value, *pull(jnp.asarray(cotangent))))
    for expected, actual in zip(*results, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max()))


def test_a_banned_target_is_impossible_and_has_no_gradient():
    hidden, head, target, banned = draw()
    target[0, 0] = 38

    def total(hidden):
        value = jnp.asarray(target_logprobs(hidden, head, target, 1.0, banned))
        return jnp.sum(jnp.where(jnp.isfinite(value), value, 0.0)), value

    (gradient), value = jax.grad(total, has_aux=True)(hidden)
    assert value[0, 0] == -jnp.inf and np.isfinite(value).sum() == value.size - 1
    assert np.isfinite(gradient).all() and not np.any(gradient[0, 0])


def test_the_backward_pass_keeps_one_array_of_the_vocabulary():
    hidden, head = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((256, 64), (8192, 64)))
    target, banned = jax.ShapeDtypeStruct((256,), jnp.int32), np.zeros(8192, bool)
    temporary = {}
    for name, function in (("plain", plain), ("ours", target_logprobs)):
        loss = jax.value_and_grad(lambda h, w, t, f=function: jnp.sum(f(h, w, t, 1.0, banned)), argnums=(0, 1))
        compiled: Any = jax.jit(loss).lower(hidden, head, target).compile()
        temporary[name] = compiled.memory_analysis().temp_size_in_bytes / (256 * 8192 * 4)
    assert temporary["ours"] < 2.2 < 2.9 < temporary["plain"], temporary
