"""The text of a response while its tokens arrive: only whole characters, and no part of a stop string."""

from __future__ import annotations

import codecs
import dataclasses
import math
from collections.abc import Iterable, Sequence

from zppo_jax.processor import Processor


@dataclasses.dataclass(frozen=True)
class Token:
    """A sampled token: its start in the text, the UTF-8 bytes that it adds, and its log-probability."""

    start: int
    content: bytes
    logprob: float


@dataclasses.dataclass(frozen=True)
class Piece:
    """Text that no later token can change, and the tokens that begin in it."""

    text: str
    tokens: tuple[Token, ...]


class NotFiniteError(ArithmeticError):
    """A log-probability is not a number, so the sample is meaningless."""


class ResponseText:
    """Decodes a response as `Processor.decode` does, cut before the first of `stops`.

    The joined pieces do not depend on the sizes of the chunks in which tokens arrive. The end of the text is held back
    while it may be the beginning of a stop string or a part of a character.
    """

    def __init__(self, processor: Processor, stops: Sequence[str] = ()) -> None:
        self._processor, self._stops = processor, tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text, self._num_tokens = "", 0
        self._given = 0
        self._waiting: list[Token] = []
        self.stopped = False

    def add(self, token_ids: Iterable[int], logprobs: Iterable[float]) -> Piece:
        """Takes more tokens; returns the text that is final now. Raises NotFiniteError."""
        for token_id, logprob in zip(token_ids, logprobs, strict=True):
            self._num_tokens += 1
            if not math.isfinite(logprob):
                raise NotFiniteError(
                    f"the log-probability of token {self._num_tokens} is {logprob:g}: the model's weights or "
                    "activations are not finite; load another checkpoint, or a wider --dtype"
                )
            content = self._processor.token_bytes(token_id)
            if content and not self.stopped:
                self._waiting.append(Token(len(self._text), content, float(logprob)))
                self._extend(self._decoder.decode(content))
        return self._release(len(self._text) - self._num_held())

    def finish(self) -> Piece:
        """Returns the rest, after the last token."""
        if not self.stopped:
            self._extend(self._decoder.decode(b"", final=True))
        return self._release(len(self._text))

    def _extend(self, new: str) -> None:
        begin = max(len(self._text) - self._longest + 1, 0)
        self._text += new
        found = [place for stop in self._stops if (place := self._text.find(stop, begin)) >= 0]
        if found:
            self._text, self.stopped = self._text[: min(found)], True

    def _num_held(self) -> int:
        """The length of the text's end that may be the beginning of a stop string."""
        if self.stopped:
            return 0
        lengths = range(min(self._longest - 1, len(self._text)), 0, -1)
        return next((num for num in lengths if any(stop.startswith(self._text[-num:]) for stop in self._stops)), 0)

    def _release(self, end: int) -> Piece:
        text, self._given = self._text[self._given : end], end
        ready = tuple(token for token in self._waiting if token.start < end)
        self._waiting = self._waiting[len(ready) :]
        return Piece(text, ready)


def whole(processor: Processor, token_ids: Iterable[int], logprobs: Iterable[float], stops: Sequence[str] = ()) -> str:
    """The text of a finished response."""
    text = ResponseText(processor, stops)
    return text.add(token_ids, logprobs).text + text.finish().text
