"""Chat completions for clients, whole or in chunks, in OpenAI's format."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from zppo_jax.generate.text import NotFiniteError, Piece, ResponseText, Token
from zppo_jax.processor import Processor
from zppo_jax.rollout.session import Event
from zppo_jax.serve.errors import ApiError
from zppo_jax.serve.protocol import ChatRequest

_LOWEST_LOGPROB = -9999.0  # OpenAI's value for tokens that are all but impossible
DONE = b"data: [DONE]\n\n"


class Answer:
    """The answer to one request, while its responses come in."""

    def __init__(self, chat: ChatRequest, processor: Processor, model: str, num_prompt_tokens: int) -> None:
        self._chat = chat
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._texts = [ResponseText(processor, chat.stops) for _ in range(chat.num_samples)]
        self._pieces: list[list[Piece]] = [[] for _ in self._texts]
        self._reasons: list[str | None] = [None] * chat.num_samples
        self._num_prompt_tokens, self._num_tokens = num_prompt_tokens, 0

    @property
    def is_complete(self) -> bool:
        return None not in self._reasons

    def take(self, event: Event) -> Piece:
        """Adds an event to its response; returns the new text. Raises ApiError."""
        text = self._texts[event.index]
        self._num_tokens += len(event.token_ids_K)
        try:
            piece = text.add(event.token_ids_K.tolist(), event.logprobs_K.tolist())
        except NotFiniteError as error:
            raise ApiError(f"response {event.index}: {error}", 500, code="not_finite") from error
        if event.sample is not None:
            rest = text.finish()
            piece = Piece(piece.text + rest.text, piece.tokens + rest.tokens)
            self._reasons[event.index] = "stop" if text.stopped else event.sample.finish_reason
        self._pieces[event.index].append(piece)
        return piece

    def whole(self) -> Iterator[bytes]:
        """Yields the chat completion in pieces: all log-probabilities of many responses take a second to write."""
        yield written(self._head | {"object": "chat.completion"})[:-1] + b', "choices": ['
        for index, (pieces, reason) in enumerate(zip(self._pieces, self._reasons, strict=True)):
            message = {"role": "assistant", "content": "".join(piece.text for piece in pieces), "refusal": None}
            tokens = [token for piece in pieces for token in piece.tokens]
            choice = {"index": index, "message": message, "logprobs": self._logprobs(tokens), "finish_reason": reason}
            yield b", " * bool(index) + written(choice)
        yield b'], "usage": ' + written(self._usage()) + b"}"

    # ---------------------------------------------------------------- server-sent events

    def first_chunks(self) -> Iterator[bytes]:
        """Yields the chunk with the role, for each response."""
        for index in range(self._chat.num_samples):
            yield self._chunk([self._choice(index, {"role": "assistant", "content": ""}, None, None)])

    def chunks(self, event: Event) -> Iterator[bytes]:
        """Yields the chunks that an event adds."""
        piece = self.take(event)
        if piece.text or piece.tokens:
            yield self._chunk([self._choice(event.index, {"content": piece.text}, self._logprobs(piece.tokens), None)])
        if event.sample is not None:
            yield self._chunk([self._choice(event.index, {}, None, self._reasons[event.index])])

    def last_chunks(self) -> Iterator[bytes]:
        if self._chat.include_usage:
            yield self._chunk([], self._usage())
        yield DONE

    def _choice(self, index: int, delta: dict[str, Any], logprobs: Any, reason: str | None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        chunk = self._head | {"object": "chat.completion.chunk", "choices": choices}
        return server_sent(chunk | ({"usage": usage} if self._chat.include_usage else {}))

    # ---------------------------------------------------------------- parts of both

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self._chat.logprobs:
            return None
        return {"content": [_entry(token) for token in tokens], "refusal": None}

    def _usage(self) -> dict[str, int]:
        prompt, sampled = self._num_prompt_tokens, self._num_tokens
        return {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled}


def _entry(token: Token) -> dict[str, Any]:
    return {
        "token": token.content.decode("utf-8", "replace"),
        "logprob": max(token.logprob, _LOWEST_LOGPROB),
        "bytes": list(token.content),
        "top_logprobs": [],
    }


def written(content: dict[str, Any]) -> bytes:
    """Encodes JSON, in ASCII, since a client's text may hold half a surrogate pair; NaN is an error."""
    return json.dumps(content, allow_nan=False).encode()


def server_sent(content: dict[str, Any]) -> bytes:
    """An event of a stream."""
    return b"data: " + written(content) + b"\n\n"
