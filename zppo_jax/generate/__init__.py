"""`python -m zppo_jax.generate`: responses of a model to a prompt, on the command line.

`model` (a directory's model, processor and engine), `devices` (where these lie) and `text` (a response's text, token by
token) serve the server too.
"""
