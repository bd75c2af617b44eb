"""The update: group-relative advantages, the clipped token-level loss, one compiled optimiser step."""

from zppo_jax.update.advantages import group_advantages
from zppo_jax.update.losses import clipped_surrogate

__all__ = ["clipped_surrogate", "group_advantages"]
