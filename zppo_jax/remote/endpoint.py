"""One request to an OpenAI-compatible endpoint, through the `openai` package, with a limit on its time and size."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from zppo_jax.errors import ConfigError, one_line
from zppo_jax.remote.retry_after import retry_after
from zppo_jax.remote.unanswered import Unanswered
from zppo_jax.types import MissReason

_THIS_REQUEST = (400, 413, 422)  # the endpoint works, but does not take this request
_EVERY_REQUEST = (401, 403, 404)  # the key or the name of the model: no request will fare better
_TOO_LONG = ("context_length_exceeded", "context length", "maximum model length", "max_model_len")
"""What servers say of a prompt that is too long: the code of OpenAI and of our own; words of vLLM and SGLang."""
_CONNECT_SECONDS = 10.0  # a machine that is switched off does not even refuse


@dataclasses.dataclass(frozen=True)
class Role:
    """The part that a model behind a network plays in a run, for messages.

    Attributes: its `name`, also of the extra that installs what it needs; the `setting` with its endpoints; the
    environment variable of its key; and for the first failure of a step what it did not do and what follows from that
    ("": the caller reports failures).
    """

    name: str
    setting: str
    key_variable: str
    gave_nothing: str = ""
    consequence: str = ""


def read_key(variable: str) -> str:
    """The endpoint's key, from the environment; "" if there is none. Not OPENAI_API_KEY: that key would go to any
    endpoint that a configuration names. Raises ConfigError, without the key, if it cannot be sent."""
    key = os.environ.get(variable, "").strip()
    if any(not "!" <= letter <= "~" for letter in key):
        raise ConfigError(f"the key in {variable} holds white space or letters beyond ASCII: set it without them")
    return key


class Endpoint:
    """An address at which models answer. `max_bytes` limits the body of a reply.

    Raises ConfigError, in one line, if the `openai` package is not installed.
    """

    def __init__(self, url: str, role: Role, *, timeout_seconds: float, max_bytes: int) -> None:
        self.url, self._timeout, self._key = url, timeout_seconds, read_key(role.key_variable)
        self._openai = _package(url, role)
        self._client: Any = self._openai.AsyncOpenAI(
            base_url=url,
            api_key=self._key or "none",
            max_retries=0,  # asking.py retries: it knows the deadline, and when to stop
            timeout=timeout_seconds,
            http_client=_bounded_client(self._openai, timeout_seconds, max_bytes),
        )

    async def chat(self, body: Mapping[str, Any]) -> Any:
        """The reply to a chat completion, not checked. Raises Unanswered, whatever goes wrong, after the timeout at the
        latest."""
        return await self._bounded(self._client.chat.completions.create(**body))

    async def models(self, seconds: float) -> tuple[str, ...]:
        """The names of the models that it serves. Raises Unanswered."""
        reply = await self._bounded(self._client.models.list(), seconds)
        data = getattr(reply, "data", None)
        names = [getattr(model, "id", None) for model in data] if isinstance(data, list) else []
        if not names or not all(isinstance(name, str) for name in names):
            raise Unanswered("the reply is not a list of models", "malformed")
        return tuple(self.safe(str(name)) for name in names)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def _bounded(self, reply: Any, seconds: float | None = None) -> Any:
        limit = self._timeout if seconds is None else min(seconds, self._timeout)
        try:
            async with asyncio.timeout(limit):  # the client's own limits only the silence between two bytes
                return await reply
        except self._openai.APIStatusError as error:
            raise self._refused(error) from error
        except (TimeoutError, self._openai.APITimeoutError) as error:
            raise Unanswered(f"no answer in {limit:g} s", "timeout") from error
        except Exception as error:  # broken bodies make the client raise many kinds
            raise self._failed(error) from error

    def _refused(self, error: Any) -> Unanswered:
        status, message = error.status_code, " ".join(str(error).split())
        cause: MissReason = "unavailable"
        if status in _THIS_REQUEST + _EVERY_REQUEST:
            said = f"{error.code} {message}".lower()
            cause = "too_long" if any(one in said for one in _TOO_LONG) else "refused"
        return Unanswered(
            f"status {status}: {self.safe(message)}",
            cause,
            again=status not in _THIS_REQUEST,
            down=status in _EVERY_REQUEST,
            pause=retry_after(error.response.headers.get("retry-after")) if status in (429, 503) else 0.0,
            wants_key=status in (401, 403),
        )

    def _failed(self, error: Exception) -> Unanswered:
        """A connection that failed, or a body that the client could not read."""
        is_connection = isinstance(error, self._openai.APIConnectionError)
        reason = error.__cause__ if is_connection and error.__cause__ is not None else error
        is_body = not is_connection or isinstance(reason, _TooLargeError)
        return Unanswered(self.safe(one_line(reason)), "malformed" if is_body else "unavailable")

    def safe(self, message: str) -> str:
        """A message of the endpoint, short, without the key and without what could move a terminal's cursor."""
        hidden = message.replace(self._key, "***") if self._key else message
        return "".join(one if one.isprintable() else "?" for one in hidden[:200])


class _TooLargeError(ValueError):
    """A reply is longer than the limit."""


def _package(url: str, role: Role) -> Any:
    try:
        import openai  # takes a second, and most runs have no endpoint
    except ImportError as error:
        raise ConfigError(
            f"{role.setting} = {url!r} needs the package openai: pip install 'zppo-jax[{role.name}]'"
        ) from error
    return openai


def _bounded_client(openai: Any, timeout_seconds: float, max_bytes: int) -> Any:
    """An HTTP client that reads no body beyond the limit."""

    class Bounded(openai.DefaultAsyncHttpxClient):
        async def send(self, request: Any, *, stream: bool = False, **settings: Any) -> Any:
            del stream  # the reply is read here, as far as the limit
            for name in [name for name in request.headers if not name.lower().startswith(_SENT)]:
                del request.headers[name]  # the client adds what other variables of the environment hold
            response = await super().send(request, stream=True, **settings)
            content = bytearray()
            try:
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > max_bytes:
                        raise _TooLargeError(f"the endpoint's reply is longer than {max_bytes} bytes")
            finally:
                await response.aclose()
            headers = [(k, v) for k, v in response.headers.items() if k.lower() not in _OF_THE_TRANSFER]
            return type(response)(response.status_code, headers=headers, content=bytes(content), request=request)

    return Bounded(timeout=openai.Timeout(timeout_seconds, connect=min(timeout_seconds, _CONNECT_SECONDS)))


_SENT = (
    *("accept", "authorization", "connection", "content-", "host", "user-agent", "x-stainless-", "transfer-encoding"),
)
"""The beginnings of the headers that are sent."""

_OF_THE_TRANSFER = ("content-encoding", "content-length", "transfer-encoding")
