"""The warm start: a tiny student and teacher trained by supervision, because a random model never earns a reward."""

from zppo_jax.warmstart.build import SHIPPED, build, directories

__all__ = ["SHIPPED", "build", "directories"]
