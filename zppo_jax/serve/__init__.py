"""`python -m zppo_jax.serve`: an OpenAI-compatible server on the engine of the rollouts.

`connections` accepts connections, `guards` admits requests, `reading` turns bodies into prompts outside the event loop
(`protocol` reads the fields, `messages` the messages, `images` the images, `limits` bounds each), `scheduler` owns the
engine in one thread, `answers` writes the answers, `app` is the HTTP side, `lingering` handles answers that are sent
before the request has been read, `__main__` is the command line.
"""
