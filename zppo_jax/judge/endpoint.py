"""One request to an OpenAI-compatible endpoint, through the `openai` package, with a limit on its time and size."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from zppo_jax.errors import ConfigError, one_line
from zppo_jax.judge.verdict import Unanswered

API_KEY_VARIABLE = "ZPPO_JUDGE_API_KEY"
"""The environment variable with the endpoint's key. Not OPENAI_API_KEY: that key would go to any endpoint that a
configuration names."""

_MAX_BODY_BYTES = 1 << 20
_THIS_CASE = (400, 413, 422)  # the endpoint works, but does not take this request
_EVERY_CASE = (401, 403, 404)  # the key or the name of the model: no request will fare better
_NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}


class Endpoint:
    """Asks one model of an endpoint, greedily; `thinking` False asks its chat template to do without.

    Raises ConfigError, in one line, if the `openai` package is not installed.
    """

    def __init__(self, url: str, model: str, *, timeout_seconds: float, max_tokens: int, thinking: bool) -> None:
        self.url, self._model, self._timeout, self._max_tokens = url, model, timeout_seconds, max_tokens
        self._key = os.environ.get(API_KEY_VARIABLE, "")
        self._more = {} if thinking else _NO_THINKING
        self._openai = _package(url)
        self._client: Any = self._openai.AsyncOpenAI(
            base_url=url,
            api_key=self._key or "none",
            max_retries=0,  # asking.py retries: it knows the deadline, and when to stop
            timeout=timeout_seconds,
            http_client=_bounded_client(self._openai, timeout_seconds),
        )

    async def ask(self, text: str) -> str:
        """The output for a user turn. Raises Unanswered, whatever goes wrong, after the timeout at the latest."""
        try:
            async with asyncio.timeout(self._timeout):  # the client's own limits only the silence between two bytes
                reply = await self._client.chat.completions.create(
                    model=self._model,
                    messages=[{"role": "user", "content": text}],
                    temperature=0.0,
                    top_p=1.0,
                    max_tokens=self._max_tokens,
                    extra_body=self._more,
                )
        except self._openai.APIStatusError as error:
            raise self._refused(error.status_code, str(error)) from error
        except (TimeoutError, self._openai.APITimeoutError) as error:
            raise Unanswered(f"no answer in {self._timeout:g} s") from error
        except Exception as error:  # broken bodies make the client raise many kinds
            raise Unanswered(self._safe(one_line(error))) from error
        return _content(reply)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    def _refused(self, status: int, message: str) -> Unanswered:
        reason = f"status {status}: {self._safe(' '.join(message.split()))}"
        return Unanswered(reason, again=status not in _THIS_CASE, down=status in _EVERY_CASE)

    def _safe(self, message: str) -> str:
        """A message of the endpoint, short, without the key and without what could move a terminal's cursor."""
        hidden = message.replace(self._key, "***") if self._key else message
        return "".join(one if one.isprintable() else "?" for one in hidden[:200])


def _package(url: str) -> Any:
    try:
        import openai  # takes a second, and most runs have no endpoint
    except ImportError as error:
        raise ConfigError(
            f"judge.endpoint = {url!r} needs the package openai: pip install 'zppo-jax[judge]'"
        ) from error
    return openai


def _bounded_client(openai: Any, timeout_seconds: float) -> Any:
    """An HTTP client that reads no body beyond the limit; a verdict has a thousandth of it."""

    class Bounded(openai.DefaultAsyncHttpxClient):
        async def send(self, request: Any, *, stream: bool = False, **settings: Any) -> Any:
            del stream  # the reply is read here, as far as the limit
            response = await super().send(request, stream=True, **settings)
            content = bytearray()
            try:
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > _MAX_BODY_BYTES:
                        raise ValueError(f"the endpoint's reply is longer than {_MAX_BODY_BYTES} bytes")
            finally:
                await response.aclose()
            headers = [(k, v) for k, v in response.headers.items() if k.lower() not in _OF_THE_TRANSFER]
            return type(response)(response.status_code, headers=headers, content=bytes(content), request=request)

    return Bounded(timeout=timeout_seconds)


_OF_THE_TRANSFER = ("content-encoding", "content-length", "transfer-encoding")


def _content(reply: Any) -> str:
    """The text of a chat completion; "" if the model wrote none. Raises Unanswered if the reply is none."""
    try:
        content = reply.choices[0].message.content
    except (AttributeError, IndexError, TypeError) as error:
        raise Unanswered("the reply is not a chat completion") from error
    if content is not None and not isinstance(content, str):
        raise Unanswered("the reply is not a chat completion")
    return content or ""
