"""`python -m zppo_jax.serve`: an OpenAI-compatible server on the engine of the rollouts.

`protocol` reads requests, `images` decodes pictures, `scheduler` owns the engine in one thread, `answers` writes what
came, `app` is the HTTP side, `__main__` the command line.
"""
