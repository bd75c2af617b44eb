"""Rollouts: a jitted sampler for grouped responses, and the host-side engine that feeds it."""

from zppo_jax.rollout.generate import Generation, generate

__all__ = ["Generation", "generate"]
