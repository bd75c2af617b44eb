"""The optimiser in bfloat16: its state keeps its dtype, and what rounding loses is not lost."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zppo_jax.update import optimizer

RATE, NUM_UPDATES = 1e-6, 400


def adamw(**changes: Any) -> optax.GradientTransformation:
    rate = optimizer.learning_rate("constant", RATE, 0, 1)
    return optimizer.adamw(rate, 0.9, 0.999, 1e-8, weight_decay=0.0, grad_clip=1.0, **changes)


def walked(transform: optax.GradientTransformation, params: Any) -> tuple[Any, Any]:
    """Parameters and state after updates with always the same gradient: Adam moves by the rate each time."""

    def one(_, carry: Any) -> Any:
        params, state = carry
        gradient = jax.tree.map(lambda p: jnp.full(p.shape, 0.01, jnp.float32), params)
        changes, state = transform.update(gradient, state, params)
        return optax.apply_updates(params, changes), state

    return jax.jit(lambda carry: jax.lax.fori_loop(0, NUM_UPDATES, one, carry))((params, transform.init(params)))


@pytest.fixture(scope="module")
def params() -> dict[str, jax.Array]:
    """Weights as large as a model has them; one leaf is kept in float32, as Qwen3.5's decays are."""
    values = np.random.default_rng(0).normal(0.0, 0.05, 500)
    return {"kernel": jnp.asarray(values, jnp.bfloat16), "a_log": jnp.asarray(values, jnp.float32)}


def moved(before: Any, after: Any) -> np.ndarray:
    return np.asarray(before, np.float64) - np.asarray(after, np.float64)


@pytest.mark.parametrize(("state_dtype", "tolerance"), [("bfloat16", 0.1), ("float32", 0.001)])
def test_with_kahan_summation_bfloat16_moves_as_float32_does(params, state_dtype, tolerance):
    """A weight moves in steps of its own spacing, and what is still to come is what the last state says."""
    after, state = walked(adamw(state_dtype=state_dtype, kahan_summation=True), params)
    assert after["kernel"].dtype == jnp.bfloat16 and after["a_log"].dtype == jnp.float32
    expected = moved(params["a_log"], after["a_log"]).mean()
    np.testing.assert_allclose(expected, RATE * NUM_UPDATES, rtol=0.05)
    kernel = moved(params["kernel"], after["kernel"])
    assert np.mean(kernel != 0.0) > 0.5
    np.testing.assert_allclose(kernel.mean(), expected, rtol=0.2)
    lost = np.asarray(state[-1]["kernel"], np.float64)
    np.testing.assert_allclose((kernel - lost).mean(), expected, rtol=tolerance)


def test_without_it_hardly_a_weight_moves(params):
    after, _ = walked(adamw(state_dtype="bfloat16"), params)
    assert np.mean(moved(params["kernel"], after["kernel"]) != 0.0) < 0.05


@pytest.mark.parametrize("state_dtype", ["bfloat16", "float32"])
def test_the_state_keeps_its_dtype(params, state_dtype):
    """Whatever dtype the gradient has: else the second update would need another compiled program."""
    transform = adamw(state_dtype=state_dtype, kahan_summation=True)
    state = transform.init(params)
    for gradient_dtype in (jnp.float32, jnp.bfloat16):
        gradient = jax.tree.map(lambda p, dtype=gradient_dtype: jnp.ones(p.shape, dtype), params)
        _, after = jax.eval_shape(transform.update, gradient, state, params)
        assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)
    floating = {x.dtype for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)}
    assert floating == {jnp.dtype(state_dtype)}


def test_in_float32_nothing_is_changed_by_either(params):
    """Rounding float32 to float32 loses nothing that counts: the plain optimiser of optax to the bit."""
    weights = {"a_log": params["a_log"]}
    plain = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(RATE, weight_decay=0.0))
    np.testing.assert_array_equal(walked(adamw(), weights)[0]["a_log"], walked(plain, weights)[0]["a_log"])
