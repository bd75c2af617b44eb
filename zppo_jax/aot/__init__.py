"""Compiles a run's programs for a TPU slice without having one: python -m zppo_jax.aot."""
