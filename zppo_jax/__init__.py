"""Zone of Proximal Policy Optimization (arXiv:2606.18216) for Qwen3.5 vision-language models, in JAX.

The data flows in this order, and so do the imports:
config -> data -> rollout -> rewards -> zppo (select, teacher, reformulate) -> rollout -> rewards -> update -> metrics.
`train.py` is the loop on one screen; `python -m zppo_jax.main --help` explains how to run it.
"""

__version__ = "0.1.0"
