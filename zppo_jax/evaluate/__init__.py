"""Evaluations of the student, which the training loop runs, and the statistics of their results."""

from __future__ import annotations

from zppo_jax.evaluate.evaluator import Evaluator
from zppo_jax.evaluate.heldout import Graded, HeldOut, Score, metrics, table

__all__ = ["Evaluator", "Graded", "HeldOut", "Score", "metrics", "table"]
