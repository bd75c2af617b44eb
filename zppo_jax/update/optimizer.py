"""AdamW with global-norm clipping and a constant, linear or cosine schedule (Table 8 of arXiv:2606.18216)."""

from __future__ import annotations

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
    rate: optax.Schedule, b1: float, b2: float, eps: float, weight_decay: float, grad_clip: float
) -> optax.GradientTransformation:
    """Clip the global gradient norm, then AdamW."""
    return optax.chain(
        optax.clip_by_global_norm(grad_clip),
        optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay),
    )
