"""The corpus builder, `python -m zppo_jax.data.zppo77k`: ZPPO-77K (App. B.1 of arXiv:2606.18216) from its sources."""
