"""Exports a run to a directory that transformers, vLLM and lm-eval load: `python -m zppo_jax.export --help`.

The command line is in `__main__`, which reports mistakes before jax is imported; the work is in `write`.
"""
