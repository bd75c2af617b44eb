"""Checks before a request is read: the key, the size of its body, room for it, and its deadline."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hmac
import time
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect, Request

from zppo_jax.serve.errors import ApiError, busy
from zppo_jax.serve.limits import SMALL_BODY


def check_key(request: Request, api_key: str | None) -> None:
    if api_key is None:
        return
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), api_key.encode()):
        raise ApiError(
            "the API key is missing or wrong: send the header `Authorization: Bearer KEY`",
            401, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"},
        )  # fmt: skip


class Deadline:
    """The moment, on the monotonic clock, at which a request must have been read: `seconds` after its first byte."""

    def __init__(self, request: Request, seconds: float) -> None:
        arrived = request.scope.get("state", {}).get("arrived", time.monotonic())
        self.seconds, self.at = seconds, arrived + seconds

    @contextlib.asynccontextmanager
    async def holds(self, error: ApiError) -> AsyncIterator[None]:
        """Raises `error` in the block at the deadline."""
        try:
            async with asyncio.timeout(self.at - time.monotonic()):
                yield
        except TimeoutError:
            raise error from None


class Bodies:
    """Room in memory for the bodies of all requests together, first come, first served; for the event loop only.

    The first bytes of each body need none, so that large ones, perhaps half sent, keep no short question out.
    """

    def __init__(self, num_bytes: int) -> None:
        self._left = num_bytes
        self._waiting: collections.deque[tuple[int, asyncio.Future[None]]] = collections.deque()

    async def take(self, num_bytes: int) -> None:
        """Waits until there is room for `num_bytes`, and takes it."""
        place = (num_bytes, asyncio.get_running_loop().create_future())
        self._waiting.append(place)
        self.give(0)
        try:
            await place[1]
        except asyncio.CancelledError:
            if place in self._waiting:
                self._waiting.remove(place)
                self.give(0)
            else:  # granted in the same moment
                self.give(num_bytes)
            raise

    def give(self, num_bytes: int) -> None:
        """Returns room, and grants it to waiting requests."""
        self._left += num_bytes
        while self._waiting and self._waiting[0][0] <= self._left:
            wanted, granted = self._waiting.popleft()
            self._left -= wanted
            granted.set_result(None)

    @contextlib.asynccontextmanager
    async def body(self, request: Request, limit: int, deadline: Deadline) -> AsyncIterator[bytes]:
        """The body of a request, whose room is held until the end of the block. Raises ApiError."""
        declared = request.headers.get("content-length", "")
        known = int(declared) if declared.isdecimal() else None
        if known is not None and known > limit:
            raise _too_large(limit)
        parts = _Parts(request, limit)
        taken = 0
        try:
            async with deadline.holds(_too_slow(deadline)):
                if known is None:
                    await parts.read(SMALL_BODY)
            needed = 0 if parts.ended else max(0, (limit if known is None else known) - SMALL_BODY)
            if needed:
                async with deadline.holds(busy("there is no room for a large request: try later")):
                    await self.take(needed)
                    taken = needed
            async with deadline.holds(_too_slow(deadline)):
                await parts.read(limit)
            yield parts.whole()
        finally:
            self.give(taken)


class _Parts:
    """The parts of a body that have arrived."""

    def __init__(self, request: Request, limit: int) -> None:
        self._stream, self._limit = request.stream(), limit
        self._content: list[bytes] = []
        self.size, self.ended = 0, False

    async def read(self, enough: int) -> None:
        """Reads until more than `enough` bytes have arrived, or all. Raises ApiError if there are too many."""
        try:
            while self.size <= enough and not self.ended:
                part = await anext(self._stream, None)
                self.ended = part is None
                self._content.append(part or b"")
                self.size += len(part or b"")
        except ClientDisconnect as error:
            raise ApiError("the client has gone", 400) from error
        if self.size > self._limit:
            raise _too_large(self._limit)

    def whole(self) -> bytes:
        """Returns the whole body, and keeps nothing of it."""
        content, self._content = b"".join(self._content), []
        return content


def _too_large(limit: int) -> ApiError:
    return ApiError(f"the request exceeds {limit} bytes", 413)


def _too_slow(deadline: Deadline) -> ApiError:
    return ApiError(f"the request has not come within {deadline.seconds:g} seconds", 408)
