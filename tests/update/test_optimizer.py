"""AdamW in float32 equals torch's; in bfloat16 it keeps its dtypes, and rounding loses no change."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.tiny_model import cache_size
from zppo_jax.run.checkpoint import Checkpoints, equal
from zppo_jax.update import optimizer, rounding

RATE = 1e-6
ROUNDINGS = ("nearest", "stochastic", "kahan", "master")
DTYPES = ("bfloat16", "float32")


def adamw(rate: float = RATE, weight_decay: float = 0.0, **changes: Any) -> optax.GradientTransformation:
    constant = optimizer.learning_rate("constant", rate, 0, 1)
    return optimizer.adamw(constant, 0.9, 0.999, 1e-8, weight_decay, grad_clip=1.0, **changes)


def updated(transform: optax.GradientTransformation, state: dict[str, Any], gradient: Any) -> dict[str, Any]:
    changes, inner = transform.update(gradient, state["optimizer"], state["params"])
    return {"params": optax.apply_updates(state["params"], changes), "optimizer": inner}


def fresh(transform: optax.GradientTransformation, params: Any) -> dict[str, Any]:
    return {"params": params, "optimizer": transform.init(params)}


def walked(transform: optax.GradientTransformation, params: Any, num_updates: int) -> tuple[Any, Any]:
    """Parameters and state after updates with the same gradient: Adam moves by the rate each time."""
    gradient = jax.tree.map(lambda p: jnp.full(p.shape, 1e-3, jnp.float32), params)
    walk = jax.jit(lambda s: jax.lax.fori_loop(0, num_updates, lambda _, s: updated(transform, s, gradient), s))
    state = walk(fresh(transform, params))
    return state["params"], state["optimizer"]


def weights(low: float, high: float, count: int) -> dict[str, jax.Array]:
    """The same numbers in both dtypes: Qwen3.5's decays are kept in float32 in a bfloat16 model."""
    kernel = jnp.asarray(np.random.default_rng(0).uniform(low, high, count), jnp.bfloat16)
    return {"kernel": kernel, "a_log": kernel.astype(jnp.float32)}


def moved(before: Any, after: Any) -> np.ndarray:
    return np.asarray(before, np.float64) - np.asarray(after, np.float64)


def moments(state: Any) -> Any:
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))
    (found,) = [leaf for leaf in leaves if isinstance(leaf, optax.ScaleByAdamState)]
    return found


def value(name: str, params: Any, state: Any) -> np.ndarray:
    """The value of a bfloat16 parameter, including what the optimiser still keeps for it."""
    kernel = np.asarray(params["kernel"], np.float64)
    if name == "master":
        return np.asarray(state.params["kernel"], np.float64)
    if name == "kahan":
        _, lost = state.state if isinstance(state, optimizer.Stored) else state
        return kernel + np.asarray(lost["kernel"], np.float64)
    return kernel


# ---------------------------------------------------------------- against torch


def test_in_float32_it_is_torchs_adamw():
    """Twelve updates, some clipped and some not, with the paper's betas and weight decay."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start = {"a": rng.normal(size=(7, 5)).astype(np.float32), "b": rng.normal(size=30).astype(np.float32)}
    theirs = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in start.items()}
    oracle = torch.optim.AdamW(theirs.values(), 1e-2, (0.9, 0.999), 1e-8, weight_decay=0.1)
    transform = adamw(1e-2, weight_decay=0.1)
    step, state = jax.jit(lambda state, gradient: updated(transform, state, gradient)), fresh(transform, start)
    for size in np.geomspace(1e-3, 10.0, 12):
        gradient = {name: (size * rng.normal(size=x.shape)).astype(np.float32) for name, x in start.items()}
        for name, param in theirs.items():
            param.grad = torch.tensor(gradient[name])
        torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        oracle.step()
        state = step(state, gradient)
        for name, param in theirs.items():
            np.testing.assert_allclose(state["params"][name], param.detach().numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["nearest", "stochastic", "master"])
def test_float32_parameters_move_as_optax_moves_them(name):
    """Bit-identical if nothing is rounded, else up to float32's rounding, which Kahan's summation compensates."""
    params = {"a_log": weights(-0.1, 0.1, 500)["a_log"]}
    plain = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4, weight_decay=0.0))
    ours, theirs = (walked(each, params, 100)[0] for each in (adamw(1e-4, parameter_rounding=name), plain))
    np.testing.assert_allclose(ours["a_log"], theirs["a_log"], rtol=0, atol=0 if name == "nearest" else 1e-8)


# ---------------------------------------------------------------- small changes


@pytest.mark.parametrize("state_dtype", DTYPES)
@pytest.mark.parametrize("name", ROUNDINGS[1:])
def test_a_thousand_changes_of_a_millionth_arrive_in_weights_of_one(name, state_dtype):
    """Spaced 4e-3 in bfloat16. Stochastic: on average; else with the optimiser's rest (no weight has moved yet)."""
    params = weights(0.5, 1.0, 16_384)
    after, state = walked(adamw(state_dtype=state_dtype, parameter_rounding=name), params, 1000)
    assert after["kernel"].dtype == jnp.bfloat16 and after["a_log"].dtype == jnp.float32
    expected = moved(params["a_log"], after["a_log"]).mean()
    np.testing.assert_allclose(expected, 1000 * RATE, rtol=0.02)
    np.testing.assert_allclose(moved(params["kernel"], value(name, after, state)).mean(), expected, rtol=0.04)


@pytest.mark.parametrize("state_dtype", DTYPES)
def test_to_the_nearest_they_are_lost(state_dtype):
    params = weights(0.5, 1.0, 16_384)
    after, _ = walked(adamw(state_dtype=state_dtype), params, 1000)
    assert not moved(params["kernel"], after["kernel"]).any()


@pytest.mark.parametrize("name", ROUNDINGS[1:])
def test_the_weights_themselves_move(name):
    """At the size of a model's weights, over more than their spacing: near float32, and equal on average."""
    params = weights(0.02, 0.03, 4096)
    after, _ = walked(adamw(state_dtype="bfloat16", parameter_rounding=name), params, 1000)
    off = moved(after["kernel"], after["a_log"])
    assert abs(off.mean()) < 0.03 * 1000 * RATE
    spacing = 2.0**-13
    assert np.abs(off).max() < (5 * np.sqrt(1000 * RATE * spacing) if name == "stochastic" else spacing)


@pytest.mark.parametrize("state_dtype", DTYPES)
def test_the_master_copy_is_float32_training(state_dtype):
    """The bfloat16 parameters are just its nearest numbers; weight decay uses the copy too."""
    params = {"kernel": weights(-0.1, 0.1, 500)["kernel"]}
    settings = {"rate": 1e-3, "weight_decay": 1.0, "state_dtype": state_dtype}
    after, state = walked(adamw(**settings, parameter_rounding="master"), params, 50)
    expected, _ = walked(adamw(**settings), {"kernel": params["kernel"].astype(jnp.float32)}, 50)
    np.testing.assert_allclose(state.params["kernel"], expected["kernel"], rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(after["kernel"], state.params["kernel"].astype(jnp.bfloat16))


@pytest.mark.parametrize("name", ["kahan", "master"])
def test_weight_decay_of_bfloat16_parameters_is_computed_in_float32(name):
    """Operation by operation: compiled for a CPU, a product of bfloat16 is not rounded."""
    params = {"kernel": weights(-0.1, 0.1, 500)["kernel"]}
    transform = adamw(1e-3, weight_decay=0.1, parameter_rounding=name)
    state = updated(transform, fresh(transform, params), {"kernel": jnp.zeros(500)})
    before = np.asarray(params["kernel"], np.float64)
    after = value(name, state["params"], state["optimizer"])
    np.testing.assert_allclose(before - after, 1e-4 * before, rtol=1e-3, atol=1e-8)


# ---------------------------------------------------------------- the moments


def decayed(num_updates: int) -> np.ndarray:
    """The share of second moments in bfloat16 that is left after updates without gradient."""
    params, transform = weights(-0.1, 0.1, 4096), adamw(state_dtype="bfloat16")
    gradient = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    step = jax.jit(lambda state, gradient: updated(transform, state, gradient))
    state = step(fresh(transform, params), gradient)
    before, nothing = moments(state["optimizer"]).nu["kernel"], jax.tree.map(jnp.zeros_like, gradient)
    for _ in range(num_updates):
        state = step(state, nothing)
    after = moments(state["optimizer"]).nu["kernel"]
    assert before.dtype == after.dtype == jnp.bfloat16
    return np.asarray(after, np.float64) / np.asarray(before, np.float64)


def test_the_second_moment_decays():
    for num_updates in (100, 1000):
        np.testing.assert_allclose(decayed(num_updates).mean(), 0.999**num_updates, rtol=0.02)


def test_to_the_nearest_it_would_not(monkeypatch):
    monkeypatch.setattr(rounding, "stochastic", lambda x, dtype, key: x.astype(dtype))
    np.testing.assert_array_equal(decayed(100), 1.0)


# ---------------------------------------------------------------- the state


@pytest.mark.parametrize("state_dtype", DTYPES)
@pytest.mark.parametrize("name", ROUNDINGS)
def test_the_state_keeps_its_dtypes(name, state_dtype):
    """Whatever dtype the gradient has: otherwise the second update would need another compiled program."""
    params, transform = weights(-0.1, 0.1, 500), adamw(state_dtype=state_dtype, parameter_rounding=name)
    state = transform.init(params)
    for gradient_dtype in (jnp.float32, jnp.bfloat16):
        gradient = jax.tree.map(lambda p, dtype=gradient_dtype: jnp.ones(p.shape, dtype), params)
        _, after = jax.eval_shape(transform.update, gradient, state, params)
        assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)
    floating = [x.dtype for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    expected = [state_dtype] * (6 if name == "kahan" else 4) + ["float32"] * (2 if name == "master" else 0)
    assert sorted(floating, key=str) == sorted(map(jnp.dtype, expected), key=str)


@pytest.mark.parametrize("name", ROUNDINGS)
def test_updates_in_one_program_and_in_place(name):
    """Three updates compile once; every byte of parameters and state is written over the old one."""
    transform = adamw(state_dtype="bfloat16", parameter_rounding=name)
    params = weights(-0.1, 0.1, 4096)
    gradient = jax.tree.map(lambda p: jnp.ones(p.shape, jnp.float32), params)
    step = jax.jit(lambda state, gradient: updated(transform, state, gradient), donate_argnums=0)
    state = fresh(transform, params)
    memory: Any = step.lower(state, gradient).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    for _ in range(3):
        given, state = state, step(state, gradient)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
    assert cache_size(step) == 1


@pytest.mark.parametrize("name", ROUNDINGS)
def test_a_checkpoint_continues_to_the_same_bits(name, tmp_path):
    """The random bits are those of the uninterrupted updates."""
    params, transform = weights(-0.1, 0.1, 300), adamw(1e-4, state_dtype="bfloat16", parameter_rounding=name)
    gradients = np.random.default_rng(1).normal(size=(4, 300)).astype(np.float32)
    step = jax.jit(lambda state, gradient: updated(transform, state, {"kernel": gradient, "a_log": gradient}))
    state, half = fresh(transform, params), None
    for number, gradient in enumerate(gradients):
        half = state if number == 2 else half
        state = step(state, gradient)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(2, half or {}, {})
    _, restored, _ = checkpoints.restore(jax.tree.map(jnp.zeros_like, state))
    checkpoints.close()
    for gradient in gradients[2:]:
        restored = step(restored, gradient)
    assert equal(restored, state)
