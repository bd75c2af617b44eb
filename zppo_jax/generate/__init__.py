"""`python -m zppo_jax.generate`: responses of a model to a prompt, on the command line.

The server also uses `model` (a directory's model, processor and engine), `devices` (their devices) and `text` (a
response's text, token by token).
"""
