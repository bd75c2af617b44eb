"""Limits on the size of a request, and on the time until it has been read."""

from __future__ import annotations

import dataclasses

from zppo_jax.processor import Processor
from zppo_jax.rollout.shapes import Shapes

SMALL_BODY = 2**16
"""Bytes of a body for which there is always room, so that a few lines of text do not wait for large bodies."""
_BODIES = 8
_TOKENS_PER_MESSAGE = 4  # two marks, the role and a line end: the template writes them around every message
_MARKS_PER_TOKEN, _MARKS = 8, 10_000


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one request: bytes of its body, images, and seconds from its first byte until it has been read."""

    body_bytes: int = 20 * 2**20
    images: int = 4
    seconds: float = 30.0

    @property
    def all_bodies_bytes(self) -> int:
        """Limit on the bodies of all requests together; the first SMALL_BODY bytes of each do not count."""
        return _BODIES * self.body_bytes


@dataclasses.dataclass(frozen=True)
class PromptLimits:
    """Limits on the messages of a request, which are counted before anything is rendered.

    They follow from the longest prompt of `tokens` tokens: a request beyond them certainly has too many tokens
    (`characters`, `messages`), or is not a prompt that people write (`parts` of messages, `marks`: brackets and
    commas, `escapes`: backslashes).
    """

    tokens: int
    characters: int
    images: int

    @classmethod
    def for_server(cls, shapes: Shapes, processor: Processor, images: int) -> PromptLimits:
        """The limits of a server with these shapes. A token has a known maximum of bytes, and normalisation joins up to
        four characters."""
        tokens = shapes.buckets[-1] + 1
        longest = max(map(len, processor.tokenizer.get_vocab(with_added_tokens=True)))
        return cls(tokens, 4 * longest * tokens, images)

    @property
    def messages(self) -> int:
        return max(1, self.tokens // _TOKENS_PER_MESSAGE)

    @property
    def parts(self) -> int:
        return self.tokens

    @property
    def marks(self) -> int:
        return _MARKS_PER_TOKEN * self.tokens + _MARKS

    def max_escapes(self, num_bytes: int) -> int:
        """The most backslashes of a body: two for each character beyond ASCII, and one for each slash of base64."""
        return 2 * self.characters + num_bytes // 32
