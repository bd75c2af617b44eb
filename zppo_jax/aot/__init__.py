"""Compiling a run's programs for a TPU slice that is not there: python -m zppo_jax.aot."""
