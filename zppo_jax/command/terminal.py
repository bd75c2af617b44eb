"""Text of models and data on a terminal."""

from __future__ import annotations


def harmless(text: str) -> str:
    """The text without control sequences, which a terminal would follow; lines and tabs stay."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text)


def one_harmless_line(text: str) -> str:
    """The text in one line, without control sequences."""
    return harmless(" ".join(text.split()))
