"""Fixed-size keys of rows: equal keys mean the same image, the same question, or the same place in the random order.

An image's key is a hash of its decoded pixels: two PNG files of one picture are equal, a JPEG of it is not.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from zppo_jax.data.zppo77k.golds import first_choice

SIZE = 16
"""Bytes of a key: two of a billion different rows have the same one with a probability of 1e-21."""

_MARKS = re.compile(r"[?!,;:\"'`’‘“”。？！，；：]|\.(?!\d)")


def normalised(question: str) -> str:
    """A question without case, width of characters, spacing and punctuation of sentences; signs of mathematics stay."""
    return " ".join(_MARKS.sub(" ", unicodedata.normalize("NFKC", question).casefold()).split())


def question_keys(question: str) -> list[bytes]:
    """The keys of a question: of its whole text, and of the text before its options, which others list apart."""
    stem = question[: first_choice(question)]
    return list(dict.fromkeys(_key(normalised(text).encode()) for text in (question, stem) if normalised(text)))


def image_key(image_HWC: np.ndarray) -> bytes:
    """The key of decoded pixels, uint8 [H, W, 3]."""
    return _key(np.asarray(image_HWC.shape[:2], "<u4").tobytes(), np.ascontiguousarray(image_HWC).data)


def file_key(content: bytes) -> bytes:
    """The key of a file that is not decoded: a video."""
    return _key(content)


def row_key(question: str, media: Sequence[bytes]) -> bytes:
    """The key of a row, from its question and the keys of its media in order."""
    return _key(normalised(question).encode(), b"\x00", *media)


def draw(seed: int, row_id: str) -> int:
    """The place of a row in the random order of a seed, 64 bits; a function of both and of nothing else."""
    return int.from_bytes(_key(f"{seed}|{row_id}".encode())[:8], "little")


def _key(*parts: bytes | memoryview) -> bytes:
    digest = hashlib.sha256()  # processors compute it faster than hashes that are faster in software
    for part in parts:
        digest.update(part)
    return digest.digest()[:SIZE]
