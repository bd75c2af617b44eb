"""Lets clients receive answers that are sent before the request has been read.

A connection that is closed with unread bytes is reset, and the client loses the answer in transit. So the whole answer
is sent, and what the client still sends is discarded for a while before the connection is closed.
"""

from __future__ import annotations

import asyncio
import contextlib

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_BYTES = 64 * 2**20
_SECONDS, _SILENT_SECONDS = 10.0, 1.0
"""The longest time in all, and the longest without a byte."""


class Lingering:
    """An ASGI application that wraps another."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        ended = False

        async def received() -> Message:
            nonlocal ended
            message = await receive()
            ended = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        async def sent(message: Message) -> None:
            is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if not is_last or ended:
                await send(message)
                return
            await send(dict(message, more_body=True))
            await _drain(receive)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self._app(scope, received, sent)


def _has_body(scope: Scope) -> bool:
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])


async def _drain(receive: Receive) -> None:
    """Reads on until the request ends, or the limits are reached."""
    left = _BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_SECONDS):
            while left > 0:
                async with asyncio.timeout(_SILENT_SECONDS):
                    message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
