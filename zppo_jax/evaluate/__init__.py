"""Held-out accuracy: one response a question, scored as in training."""

from zppo_jax.evaluate.heldout import Evaluation, Score, evaluate

__all__ = ["Evaluation", "Score", "evaluate"]
