"""`python -m zppo_jax.serve`: an OpenAI-compatible server on the engine of the rollouts.

`connections` accepts, `guards` lets in, `reading` makes prompts of bodies outside the loop (`protocol` the fields,
`messages` the messages, `images` the pictures, `limits` how much of each), `scheduler` owns the engine in one thread,
`answers` writes what came, `app` is the HTTP side, `lingering` what goes out too early, `__main__` the command line.
"""
