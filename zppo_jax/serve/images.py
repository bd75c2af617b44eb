"""Images of requests: data URIs, decoded by child processes that are killed when they take too long.

A file from a stranger is opened nowhere else, not even its header: a fault in a decoder ends a child, not the server.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import queue
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np

from zppo_jax.serve.errors import ApiError

_DATA_URI = re.compile(r"data:image/[a-z0-9.+-]+(?:;[a-z0-9=._-]+)*;base64,", re.IGNORECASE)
_STARTUP_SECONDS = 30.0


def content_of(uri: str, name: str) -> bytes:
    """The file in a data URI. Raises ApiError."""
    match = _DATA_URI.match(uri)
    if match is None:
        raise ApiError(
            f"{name}: give a data URI (data:image/png;base64,...); this server fetches no addresses", param="messages"
        )
    try:
        return base64.b64decode(uri[match.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(f"{name}: not base64 ({error})", param="messages") from error


class _Child:
    """One process; lent to one thread at a time."""

    def __init__(self, memory_megabytes: int) -> None:
        # -P keeps the current folder off the path. A session of its own: Ctrl-C is for the server.
        command = [sys.executable, "-P", "-m", "zppo_jax.serve.image_worker", str(memory_megabytes)]
        paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
            start_new_session=True,
        )  # fmt: skip
        self._is_new = True

    def decode(self, content: bytes, name: str, max_pixels: int, seconds: float) -> np.ndarray | str:
        """The image or what is wrong with it. Raises EOFError or OSError when the child has ended or was killed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        killer = threading.Timer(seconds + _STARTUP_SECONDS * self._is_new, self._process.kill)
        killer.start()
        try:
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
        finally:
            killer.cancel()

    def end(self) -> None:
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # unsent bytes for a child that is gone
                if pipe is not None:
                    pipe.close()
        self._process.wait()


class ImageDecoder:
    """Decodes images in at most `num_workers` children, which start when the first image comes.

    An image of more than `max_pixels` is refused by its header; one that takes longer than `seconds` or more memory
    than `memory_megabytes` as well. Any thread may call, and waits for a free child.
    """

    def __init__(
        self, max_pixels: int, num_workers: int = 2, seconds: float = 20.0, memory_megabytes: int = 4096
    ) -> None:
        self._max_pixels, self._seconds, self._memory = max_pixels, seconds, memory_megabytes
        self._num_workers = num_workers
        # A place holds a child or None (not started, or ended). Last in, first out: light load keeps one child warm.
        self._places: queue.LifoQueue[_Child | None] = queue.LifoQueue()
        for _ in range(num_workers):
            self._places.put(None)

    def decode(self, content: bytes, name: str) -> np.ndarray:
        """RGB uint8 [H, W, 3]. Raises ApiError."""
        child, kept = self._places.get(), None
        try:
            child = child or _Child(self._memory)
            decoded = child.decode(content, name, self._max_pixels, self._seconds)
            kept = child
        except (EOFError, OSError) as error:
            message = f"{name}: cannot be decoded within {self._seconds:g} seconds and {self._memory} megabytes"
            raise ApiError(message, param="messages") from error
        finally:
            if child is not None and kept is None:
                child.end()
            self._places.put(kept)
        if isinstance(decoded, str):
            raise ApiError(decoded, param="messages")
        return decoded

    def close(self) -> None:
        """Ends the children, when those that decode have finished."""
        for _ in range(self._num_workers):
            if (child := self._places.get()) is not None:
                child.end()
            self._places.put(None)
