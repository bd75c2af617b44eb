"""The parent's side of one scoring child (`worker`): start it, ask it, and report how it failed.

Children are started as plain subprocesses and not with multiprocessing: its spawn method runs the caller's main
module again in each child (which may import jax, or have no `__main__` guard), and it talks in pickles.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

from zppo_jax import children

STARTUP_SECONDS = 60.0
OUT_OF_MEMORY = 12
"""The exit code of a child that reached its limit of memory (the number of ENOMEM)."""

# All requests of a batch are written before the first reply is read. They must fit into an empty pipe (16 KiB on
# macOS, 64 KiB on Linux), or a child that hangs would block the parent. A larger task is a batch of its own, which the
# idle child reads as it is written.
_BATCH_BYTES = 16_384
MAX_BATCH = 16
"""The most pairs that one batch holds."""

Task = Any
"""What a child is asked, as JSON holds it: for `worker` a pair of texts."""


class ChildFailed(Exception):
    """The child ended, or gave no reply in time: the comparison has no outcome."""


class NotStarted(ChildFailed):
    """The child cannot be started, or ended before it was ready."""


class UsedUp(ChildFailed):
    """The child ended because this comparison used up its limit of processor time or memory."""


class Child:
    """One child process. Not thread-safe: the pool lends it to one thread at a time."""

    def __init__(self, command: Sequence[str]):
        """Start it. Raises NotStarted."""
        try:
            self._process = children.start(command)
        except OSError as error:
            raise NotStarted(str(error)) from error
        self._owner = os.getpid()
        self._buffer = b""
        self.ready = False
        self.tasks = 0
        """Number of comparisons that it has answered."""

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Block until the child has imported its libraries. Raises NotStarted, in the child's words if it refuses."""
        if self.ready:
            return
        try:
            greeting = json.loads(self._reply(STARTUP_SECONDS))
        except ChildFailed as failure:
            raise NotStarted(str(failure)) from failure
        if greeting != "ready":
            raise NotStarted(str(greeting))
        self.ready = True

    def ask(self, pairs: Sequence[Task], seconds: float) -> Iterator[Any]:
        """Yields the replies to as many of the pairs as fit into one batch (at least one), in order, as they come.

        Raises ChildFailed when the child ends or a reply takes longer than `seconds`, UsedUp when that is the pair's
        fault. After that, or when not all replies were taken, the child must be reaped.
        """
        batch = list(_batch(pairs))
        self._write(b"".join(batch))
        for _ in batch:
            reply = json.loads(self._reply(seconds))
            self.tasks += 1
            yield reply

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except OSError as error:
            raise self._ended() from error

    def _reply(self, seconds: float) -> bytes:
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise ChildFailed(f"no reply within {seconds:.1f} s")
                chunk = os.read(self._process.stdout.fileno(), 4096)
                if not chunk:
                    raise self._ended()
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _ended(self) -> ChildFailed:
        """The error to raise for the child's end: by its exit code, the pair's fault (UsedUp) or not (ChildFailed).

        Processor time is counted from the start of each comparison, so SIGXCPU is always the pair's fault. Running out
        of memory is the pair's fault only in a child that has answered nothing yet: an older one may be full of what
        earlier comparisons left. Every other end comes from outside, also a kill by the kernel's OOM killer: the memory
        limit bounds what a pair can take, so a machine without room for that is too full for any pair.
        """
        code = self.reap(grace_seconds=1.0)
        used_up = code == -signal.SIGXCPU or (code == OUT_OF_MEMORY and self.tasks == 0)
        return (UsedUp if used_up and self.ready else ChildFailed)(f"exit code {code}")

    def kill(self) -> None:
        """End the child without touching its pipes, which another thread may read. In a forked copy: do nothing."""
        if os.getpid() == self._owner:
            self._process.kill()

    def kill_and_reap(self) -> None:
        """Kill the child and wait, so that no zombie is left, at the end of the process. A forked copy does nothing."""
        if os.getpid() == self._owner:
            self.reap()

    def reap(self, grace_seconds: float = 0.0) -> int:
        """Kill the child unless it ends by itself within the grace. Returns its exit code."""
        return children.end(self._process, grace_seconds)


def _batch(pairs: Sequence[Task]) -> Iterator[bytes]:
    """The request lines of the longest prefix that is one batch."""
    size = 0
    for place, pair in enumerate(pairs[:MAX_BATCH]):
        line = json.dumps(pair).encode() + b"\n"
        size += len(line)
        if place and size > _BATCH_BYTES:
            return
        yield line
