"""Connections: their limit, and how long one may keep the server waiting.

uvicorn closes a connection that is silent between two requests. Here a request's head has a deadline too, however
slowly its bytes arrive; an answer that the client does not read is dropped; and at the limit on connections, the one
that has been sending its request for the longest time is closed. So idle connections keep no client out.
"""

from __future__ import annotations

import asyncio
import resource
import time
from typing import Any, ClassVar

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from zppo_jax.serve.app import Server, make_app

_HEAD_SECONDS = 10.0
_UNREAD_SECONDS = 30.0
_MOST_CONNECTIONS = 4096
_BACKLOG = 512
_OTHER_FILES = 256
"""Open files of the process other than connections, with a reserve."""


class Connection(H11Protocol):
    """One connection of a server with at most `limit` of them; `incomplete` holds those whose request has not fully
    arrived, the oldest first."""

    limit: ClassVar[int]
    incomplete: ClassVar[dict[Connection, None]]

    def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any], _loop: Any = None) -> None:
        super().__init__(config, server_state, dict(app_state), _loop)  # copied: `arrived` is of this connection
        self._head: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._is_silent = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_request()
        oldest = next(iter(self.incomplete))
        if len(self.connections) > self.limit and oldest is not self:
            del self.incomplete[oldest]
            oldest.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._is_silent:
            self._is_silent = False
            self.app_state["arrived"] = time.monotonic()
        super().data_received(data)
        self._note_progress()

    def on_response_complete(self) -> None:
        self.app_state["arrived"] = time.monotonic()  # of a request that has already arrived
        was_sending = self.conn.their_state is h11.SEND_BODY
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if was_sending:  # for longer than `lingering` keeps reading
            self.transport.close()
        elif self.conn.their_state is h11.IDLE:
            self._await_request()
        else:
            self._note_progress()

    def connection_lost(self, exc: Exception | None) -> None:
        self.incomplete.pop(self, None)
        self._cancel_timers()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(_UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def _await_request(self) -> None:
        self._is_silent = True
        self.incomplete[self] = None
        self._head = self.loop.call_later(_HEAD_SECONDS, self.timeout_keep_alive_handler)

    def _note_progress(self) -> None:
        """Notes, after data has arrived, which part of a request is still missing."""
        if self.conn.their_state is not h11.IDLE and self._head is not None:
            self._head.cancel()
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self.incomplete.pop(self, None)

    def _cancel_timers(self) -> None:
        for timer in (self._head, self._unread):
            if timer is not None:
                timer.cancel()


def configuration(server: Server, **settings: Any) -> uvicorn.Config:
    """Makes uvicorn's configuration for a server; `settings` are additional ones."""
    limit = max(16, min(_MOST_CONNECTIONS, _file_limit() - _BACKLOG - _OTHER_FILES))
    kind = type("LimitedConnection", (Connection,), {"limit": limit, "incomplete": {}})
    # asyncio's loop accepts all waiting connections at once; uvloop only one per turn, after reading all clients'
    # bytes.
    return uvicorn.Config(
        make_app(server), loop="asyncio", http=kind, ws="none", backlog=_BACKLOG,
        limit_concurrency=limit + _OTHER_FILES, **settings,
    )  # fmt: skip


def _file_limit() -> int:
    """Raises the limit on open files as far as this process may; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * (_MOST_CONNECTIONS + _BACKLOG + _OTHER_FILES)
    wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
