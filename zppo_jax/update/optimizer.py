"""AdamW with global-norm clipping and a constant, linear or cosine schedule (Table 8 of arXiv:2606.18216).

The paper trains bfloat16 parameters with an optimiser state in bfloat16 (AnyPrecisionAdamW). Here everything is
computed in float32 and rounded when it is stored. Rounding to nearest would lose two things:

- the second moment: with b2 = 0.999 its decay is below the rounding, so it could only grow. Moments in bfloat16 are
  therefore rounded stochastically (rounding.py);
- the learning: at a rate of 1e-6 a change is a hundredth of the distance between bfloat16 numbers near a weight of
  0.02. `adamw` has three ways to keep it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zppo_jax.keys import PARAMETER_ROUNDING, STATE_ROUNDING
from zppo_jax.update import rounding


def learning_rate(schedule: str, peak: float, warmup_steps: int, num_updates: int) -> optax.Schedule:
    """The learning rate by update count: linear warm-up, then constant, or decay to zero at `num_updates`."""
    warmup = optax.linear_schedule(0.0, peak, max(warmup_steps, 1)) if warmup_steps else None
    rest = max(num_updates - warmup_steps, 1)
    body = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
    }[schedule]
    return optax.join_schedules([warmup, body], [warmup_steps]) if warmup else body


def adamw(
    rate: optax.Schedule,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    grad_clip: float,
    state_dtype: str = "float32",
    parameter_rounding: str = "nearest",
) -> optax.GradientTransformation:
    """Clips the global gradient norm, then applies AdamW, computed in float32 and kept in `state_dtype`. The changes
    are such that the sums with the parameters are numbers of their dtype. By `parameter_rounding` these are

    - nearest: the nearest; smaller changes are lost, and float32 needs no more;
    - stochastic: one of the two neighbours at random; right on average over updates and parameters, costs no memory;
    - kahan: the nearest; the rounding error is kept in the state's dtype and added to the next change;
    - master: the nearest to a copy of the parameters in float32, which AdamW updates.
    """
    moments = _in_float32(
        optax.chain(
            optax.clip_by_global_norm(grad_clip),
            optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay),
        )
    )
    return {
        "nearest": _stored_as(state_dtype, moments),
        "stochastic": optax.chain(_stored_as(state_dtype, moments), _stochastic()),
        "kahan": _stored_as(state_dtype, optax.chain(moments, _kahan())),
        "master": _with_master(_stored_as(state_dtype, moments)),
    }[parameter_rounding]


def _cast(tree: Any, dtype: Any) -> Any:
    """Casts floating-point leaves to another dtype."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def _in_float32(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same transformation of gradients and parameters cast to float32, with a state in float32."""

    def init(params: Any) -> Any:
        return transform.init(_cast(params, jnp.float32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return transform.update(_cast(updates, jnp.float32), state, _cast(params, jnp.float32))

    return optax.GradientTransformation(init, update)


class Stored(NamedTuple):
    """A state in another dtype than it is computed in; `count` gives each update different random bits."""

    count: jax.Array
    state: Any


def _stored_as(dtype: str, transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same transformation with its float32 state rounded stochastically to `dtype` between updates."""
    if dtype == "float32":
        return transform

    def init(params: Any) -> Stored:
        return Stored(jnp.zeros([], jnp.int32), _cast(transform.init(params), dtype))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Stored]:
        changes, new = transform.update(updates, _cast(state.state, jnp.float32), params)
        return changes, Stored(state.count + 1, rounding.stochastic_like(new, state.state, STATE_ROUNDING, state.count))

    return optax.GradientTransformation(init, update)


def _stochastic() -> optax.GradientTransformation:
    """Makes each change one to a number of the parameter's dtype, up or down at random; counts the updates."""

    def init(params: Any) -> jax.Array:
        del params
        return jnp.zeros([], jnp.int32)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, jax.Array]:
        wanted = jax.tree.map(jnp.add, _cast(params, jnp.float32), updates)
        stored = rounding.stochastic_like(wanted, params, PARAMETER_ROUNDING, state)
        return jax.tree.map(_change, stored, params), state + 1

    return optax.GradientTransformation(init, update)


def _kahan() -> optax.GradientTransformation:
    """Makes each change one to the nearest number of the parameter's dtype, and keeps the rest for the next time."""

    def init(params: Any) -> Any:
        return jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        wanted = jax.tree.map(jnp.add, updates, state)
        moved = jax.tree.map(jnp.add, _cast(params, jnp.float32), wanted)
        applied = jax.tree.map(_change_to_nearest, moved, params)
        return applied, jax.tree.map(jnp.subtract, wanted, applied)

    return optax.GradientTransformation(init, update)


class Mastered(NamedTuple):
    """The parameters in float32, and the state of their optimiser."""

    params: Any
    state: Any


def _with_master(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies the transformation to a float32 copy of the parameters; the changes lead to its nearest numbers."""

    def init(params: Any) -> Mastered:
        # A copy even of float32: the update donates the buffers of both the parameters and the state.
        return Mastered(jax.tree.map(lambda p: jnp.array(p, jnp.float32), params), transform.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Mastered]:
        changes, inner = transform.update(updates, state.state, state.params)
        master = jax.tree.map(jnp.add, state.params, changes)
        return jax.tree.map(_change_to_nearest, master, params), Mastered(master, inner)

    return optax.GradientTransformation(init, update)


def _change_to_nearest(value: jax.Array, param: jax.Array) -> jax.Array:
    return _change(rounding.nearest(value, param.dtype), param)


def _change(stored: jax.Array, param: jax.Array) -> jax.Array:
    """The float32 change that takes `param` to `stored`, a number of its dtype."""
    return stored.astype(jnp.float32) - param.astype(jnp.float32)
