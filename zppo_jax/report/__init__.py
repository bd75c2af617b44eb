"""Pictures of a run directory."""

from __future__ import annotations

from zppo_jax.report.curves import draw_curves

__all__ = ["draw_curves"]
