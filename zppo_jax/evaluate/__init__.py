"""Evaluations of the student, which the training loop walks, and what their numbers mean."""

from __future__ import annotations

from zppo_jax.evaluate.evaluator import Evaluator
from zppo_jax.evaluate.heldout import Graded, HeldOut, Score, metrics, table

__all__ = ["Evaluator", "Graded", "HeldOut", "Score", "metrics", "table"]
