"""AdamW with global-norm clipping and a constant, linear or cosine schedule (Table 8 of arXiv:2606.18216).

The paper trains bfloat16 parameters with an optimiser state in bfloat16 (AnyPrecisionAdamW). At its learning rate of
1e-6 a change is a hundredth of the distance between two bfloat16 numbers: added plainly, it is rounded away and nothing
is ever learned. Hence Kahan's summation: what rounding loses is kept and added to the next change.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax


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
    kahan_summation: bool = False,
) -> optax.GradientTransformation:
    """Clip the global gradient norm, then AdamW; computed in float32, its state kept in `state_dtype`."""
    steps = [
        optax.clip_by_global_norm(grad_clip),
        optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay),
    ]
    return _stored_as(state_dtype, optax.chain(*steps, *([_kahan()] if kahan_summation else [])))


def _stored_as(dtype: str, transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same transformation with its floating-point state kept in `dtype` between updates.

    Optax leaves the second moment in whatever dtype the gradient has, so the state would change its dtype under way.
    """

    def cast(tree: Any, to: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(to) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)

    def init(params: Any) -> Any:
        return cast(transform.init(params), dtype)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        changes, state = transform.update(updates, cast(state, jnp.float32), params)
        return changes, cast(state, dtype)

    return optax.GradientTransformation(init, update)


def _kahan() -> optax.GradientTransformation:
    """Makes each change one that the parameter's dtype holds exactly, and keeps the rest of it for the next time."""

    def init(params: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        wanted = jax.tree.map(jnp.add, updates, state)
        applied = jax.tree.map(_rounded_change, wanted, params)
        return applied, jax.tree.map(jnp.subtract, wanted, applied)

    return optax.GradientTransformation(init, update)


def _rounded_change(change: jax.Array, param: jax.Array) -> jax.Array:
    """How far `param` really moves, in float32, when `change` is added and the sum rounded to its dtype."""
    start, kind = param.astype(jnp.float32), jnp.finfo(param.dtype)
    # Not a cast there and back: XLA may leave such a pair out, for better precision.
    return jax.lax.reduce_precision(start + change, kind.nexp, kind.nmant) - start
