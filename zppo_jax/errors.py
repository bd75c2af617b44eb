"""The errors that end a command in one line for the user: what happened, where, and how to fix it."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration cannot be run; the message names key, value and fix."""


class RunError(RuntimeError):
    """An error that ends a run after it began; the message says what happened, where, and how to fix it."""


class WorkdirError(RunError):
    """A run directory cannot be used; the message names directory, reason and fix."""


def one_line(error: BaseException) -> str:
    """The kind and message of an error, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
