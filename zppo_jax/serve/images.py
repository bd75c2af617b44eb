"""Images of requests: data URIs, decoded by child processes that are killed if they take too long.

A client's file is opened nowhere else, not even its header: a fault in a decoder ends a child, not the server.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import queue
import re
import signal
import threading
import time

import numpy as np

from zppo_jax import children
from zppo_jax.serve.errors import ApiError, busy

_DATA_URI = re.compile(r"data:image/[a-z0-9.+-]+(?:;[a-z0-9=._-]+)*;base64,", re.IGNORECASE)
_STARTUP_SECONDS = 30.0
# The limit is on processor time, so that a busy machine refuses no good image; the wall clock is the backstop.
_WALL_FACTOR = 4.0


def content_of(uri: str, name: str) -> bytes:
    """Decodes the file in a data URI. Raises ApiError."""
    match = _DATA_URI.match(uri)
    if match is None:
        raise ApiError(
            f"{name}: give a data URI (data:image/png;base64,...); this server fetches no addresses", param="messages"
        )
    try:
        return base64.b64decode(uri[match.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(f"{name}: not base64 ({error})", param="messages") from error


class _DiedError(Exception):
    """The child has ended, not because of a limit."""


class _Child:
    """One process; lent to one thread at a time."""

    def __init__(self, memory_megabytes: int, processor_seconds: float) -> None:
        command = children.command("zppo_jax.serve.image_worker", memory_megabytes, processor_seconds)
        self._process = children.start(command, new_session=False)
        self._wall_seconds = _WALL_FACTOR * processor_seconds
        self._is_new = True

    def decode(self, content: bytes, name: str, max_pixels: int, seconds: float) -> np.ndarray | str:
        """Returns the image, or the fault of the file. Raises TimeoutError if it takes too long (at most `seconds`),
        and _DiedError if the child has ended."""
        late = threading.Event()
        allowed = min(self._wall_seconds + _STARTUP_SECONDS * self._is_new, seconds)
        killer = threading.Timer(max(allowed, 0.0), lambda: (late.set(), self._process.kill()))
        killer.start()
        try:
            return self._ask(content, name, max_pixels)
        except (EOFError, OSError) as error:
            if late.is_set() or self._process.wait() == -signal.SIGXCPU:
                raise TimeoutError from error
            raise _DiedError from error
        finally:
            killer.cancel()

    def _ask(self, content: bytes, name: str, max_pixels: int) -> np.ndarray | str:
        assert self._process.stdin is not None and self._process.stdout is not None
        head = {"size": len(content), "name": name, "max_pixels": max_pixels}
        self._process.stdin.write(json.dumps(head).encode() + b"\n" + content)
        self._process.stdin.flush()
        reply = json.loads(self._process.stdout.readline() or b"null")
        if reply is None:
            raise EOFError
        self._is_new = False
        if "error" in reply:
            return reply["error"]
        size = 3 * reply["height"] * reply["width"]
        pixels = self._process.stdout.read(size)
        if len(pixels) < size:
            raise EOFError
        return np.frombuffer(pixels, np.uint8).reshape(reply["height"], reply["width"], 3)

    def end(self) -> None:
        children.end(self._process)


class ImageDecoder:
    """Decodes images in at most `num_workers` children, which start when the first image comes.

    An image of more than `max_pixels` is refused by its header; so is one that takes longer than `seconds` of processor
    time or more memory than `memory_megabytes`. A child that dies is replaced, and the image is tried once more. Any
    thread may call, and waits for a free child.
    """

    def __init__(
        self, max_pixels: int, num_workers: int = 2, seconds: float = 5.0, memory_megabytes: int = 4096
    ) -> None:
        self._max_pixels, self._seconds, self._memory = max_pixels, seconds, memory_megabytes
        self.num_workers = num_workers
        # A place holds a child or None (not started, or ended). Last in, first out: light load keeps one child warm.
        self._places: queue.LifoQueue[_Child | None] = queue.LifoQueue()
        for _ in range(num_workers):
            self._places.put(None)

    def decode(self, content: bytes, name: str, deadline: float = math.inf) -> np.ndarray:
        """Decodes to RGB uint8 [H, W, 3], before `deadline` of the monotonic clock. Raises ApiError."""
        for _ in range(2):
            try:
                decoded = self._lend(content, name, deadline)
            except _DiedError:
                continue
            except TimeoutError as error:
                if time.monotonic() >= deadline:
                    raise busy("the images could not be decoded in time: try later") from error
                message = f"{name}: cannot be decoded within {self._seconds:g} seconds"
                raise ApiError(message, param="messages") from error
            if isinstance(decoded, str):
                raise ApiError(decoded, param="messages")
            return decoded
        message = f"{name}: cannot be decoded within {self._memory} megabytes, or ends the program that decodes it"
        raise ApiError(message, param="messages")

    def _lend(self, content: bytes, name: str, deadline: float) -> np.ndarray | str:
        """Lets a child decode. Raises TimeoutError and _DiedError."""
        try:
            child, kept = self._places.get(timeout=_until(deadline)), None
        except queue.Empty as error:
            raise TimeoutError from error
        try:
            child = child or _Child(self._memory, self._seconds)
            decoded = child.decode(content, name, self._max_pixels, deadline - time.monotonic())
            kept = child
            return decoded
        finally:
            if child is not None and kept is None:
                child.end()
            self._places.put(kept)

    def close(self) -> None:
        """Ends the children, after those that decode have finished."""
        for _ in range(self.num_workers):
            if (child := self._places.get()) is not None:
                child.end()
            self._places.put(None)


def _until(deadline: float) -> float | None:
    return None if deadline == math.inf else max(deadline - time.monotonic(), 0.0)
