"""The HTTP side: routes, keys, limits, and clients that come and go."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from zppo_jax.keys import RandomStream
from zppo_jax.processor import Processor
from zppo_jax.rollout import requests
from zppo_jax.rollout.session import Event
from zppo_jax.rollout.shapes import Shapes
from zppo_jax.serve import guards
from zppo_jax.serve.answers import Answer, server_sent, written
from zppo_jax.serve.errors import ApiError
from zppo_jax.serve.images import ImageDecoder
from zppo_jax.serve.limits import Limits
from zppo_jax.serve.lingering import Lingering
from zppo_jax.serve.protocol import ChatRequest
from zppo_jax.serve.reading import Reader
from zppo_jax.serve.scheduler import Pending, Scheduler
from zppo_jax.types import Features

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Server:
    """The state of the routes; `api_key` None lets every client in."""

    name: str
    processor: Processor
    shapes: Shapes
    scheduler: Scheduler
    decoder: ImageDecoder
    limits: Limits = dataclasses.field(default_factory=Limits)
    api_key: str | None = None
    started: int = dataclasses.field(default_factory=lambda: int(time.time()))

    @functools.cached_property
    def reader(self) -> Reader:
        return Reader(self.name, self.processor, self.shapes, self.scheduler, self.decoder, self.limits)

    def close(self) -> None:
        """Ends the engine's thread, the readers and the children that decode."""
        self.scheduler.close()
        self.reader.close()
        self.decoder.close()


def make_app(server: Server) -> ASGIApp:
    """The application for any ASGI server."""

    def route(path: str, endpoint: Callable[..., Any], methods: list[str], is_open: bool = False) -> Route:
        async def answer(request: Request) -> Response:
            if not is_open:
                guards.check_key(request, server.api_key)
            with _until_it_stops():
                return await endpoint(server, request)

        return Route(path, answer, methods=methods)

    routes = [
        route("/v1/chat/completions", _chat_completions, ["POST"]),
        route("/v1/models", _models, ["GET"]),
        route("/v1/models/{name:path}", _model, ["GET"]),
        route("/health", _health, ["GET"], is_open=True),
    ]
    handlers: dict[Any, Any] = {ApiError: _api_error, HTTPException: _starlette_error, Exception: _server_error}
    return Lingering(Starlette(routes=routes, exception_handlers=handlers))


@contextlib.contextmanager
def _until_it_stops() -> Iterator[None]:
    """Answers a cancelled request with status 503: only uvicorn cancels, when the server ends."""
    try:
        yield
    except asyncio.CancelledError:
        raise ApiError("the server is stopping", 503) from None


# ---------------------------------------------------------------- other answers


def json_response(content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(written(content), status, headers, media_type="application/json")


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return json_response(error.body, error.status, error.headers)


async def _starlette_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = "POST /v1/chat/completions, GET /v1/models and GET /health"
    answer = ApiError(f"{error.detail}: this server has {known}", error.status_code, headers=error.headers)
    return json_response(answer.body, answer.status, answer.headers)


async def _server_error(_: Request, error: Exception) -> Response:
    del error  # starlette raises it again, and so logs it
    return json_response(ApiError("an error of the server; its log says more", 500).body, 500)


async def _health(server: Server, _: Request) -> Response:
    scheduler, alive = server.scheduler, server.scheduler.is_alive
    state = {"status": "ok" if alive else "down", "responses": scheduler.num_responses}
    return json_response(state | {"busy_slots": scheduler.num_busy_slots}, 200 if alive else 503)


async def _models(server: Server, _: Request) -> Response:
    return json_response({"object": "list", "data": [_described(server)]})


async def _model(server: Server, request: Request) -> Response:
    if request.path_params["name"] != server.name:
        raise ApiError(f"there is no such model: this server has {server.name!r}", 404, code="model_not_found")
    return json_response(_described(server))


def _described(server: Server) -> dict[str, Any]:
    return {"id": server.name, "object": "model", "created": server.started, "owned_by": "zppo_jax"}


# ---------------------------------------------------------------- chat completions


async def _chat_completions(server: Server, request: Request) -> Response:
    # A web page cannot send this type to another site without a preflight request, which is not answered.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError("the request must have the header `Content-Type: application/json`", 415)
    chat, features = await server.reader.read(request)
    return _Completion(server, chat, features)


class _Completion(Response):
    """Submits the request and sends the answer; cancels it if the client disconnects."""

    def __init__(self, server: Server, chat: ChatRequest, features: Features) -> None:
        self._server, self._chat, self._features = server, chat, features
        self._answer = Answer(chat, server.processor, server.name, features.num_tokens)
        self._news: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pending = self._submit()
        watch = asyncio.create_task(self._watch(receive))
        try:
            await (self._stream(send) if self._chat.stream else self._whole(scope, receive, send))
        except ClientDisconnect:
            pass
        finally:
            self._server.scheduler.cancel(pending)
            watch.cancel()

    def _submit(self) -> Pending:
        loop, chat = asyncio.get_running_loop(), self._chat
        request = requests.Request(
            uid="chat",
            features=self._features,
            num_samples=chat.num_samples,
            sampling=chat.sampling,
            draw=RandomStream(secrets.randbits(32) if chat.seed is None else chat.seed),
            max_new_tokens=chat.max_new_tokens,
            stop_strings=chat.stops,
        )
        return self._server.scheduler.submit(
            request, lambda news: loop.call_soon_threadsafe(self._news.put_nowait, news)
        )

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._news.put_nowait(ClientDisconnect())

    async def _event(self) -> Event:
        with _until_it_stops():
            news = await self._news.get()
        if isinstance(news, ClientDisconnect):
            raise news
        if isinstance(news, Exception):
            _LOG.error("a request failed: %s", news)
            raise ApiError("the engine failed; the server's log says more", 500) from news
        return news

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            while not self._answer.is_complete:
                self._answer.take(await self._event())
            parts = []
            for part in self._answer.whole():
                parts.append(part)
                await asyncio.sleep(0)  # lets other tasks run
            response = Response(b"".join(parts), media_type="application/json")
        except ApiError as error:
            response = json_response(error.body, error.status)
        await response(scope, receive, send)

    async def _stream(self, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def part(content: bytes, more: bool = True) -> None:
            with contextlib.suppress(OSError):
                await send({"type": "http.response.body", "body": content, "more_body": more})

        try:
            await part(b"".join(self._answer.first_chunks()))
            while not self._answer.is_complete:
                if content := b"".join(self._answer.chunks(await self._event())):
                    await part(content)
            await part(b"".join(self._answer.last_chunks()))
        except ApiError as error:
            await part(server_sent(error.body))
        await part(b"", more=False)
