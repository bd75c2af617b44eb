"""Killable worker processes for the answers that need a computer algebra system, and scoring of many responses.

math-verify's own timeout is an alarm of the main thread, which is no use in a thread and clobbers other alarms; without
it a single answer can hang a run. Here each comparison runs in a child (`worker`) that is killed and replaced when
it takes too long or dies.

Children are started as plain subprocesses and not with multiprocessing: its spawn method runs the caller's main
module again in each child (which may import jax, or have no `__main__` guard), and it talks in pickles.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from zppo_jax import children
from zppo_jax.rewards.grade import Gold, Pending, grade
from zppo_jax.rewards.verdict import Status, Verdict

_STARTUP_SECONDS = 60.0
# A busy machine must not turn right answers into wrong ones: processor time decides, the wall clock is the backstop.
_WALL_FACTOR = 4.0
_CACHE_SIZE = 65_536
_COMPARED = {"equal": (True, Status.OK), "different": (False, Status.OK), "malformed": (False, Status.MALFORMED)}
_FAILED = (False, Status.ERROR)

Outcome = tuple[bool, Status]
Pair = tuple[str, str]


class Item(NamedTuple):
    """One response to score; the fields are `score`'s arguments."""

    response: str
    gold: Gold
    answer_type: str = "math"
    region: str = "final"
    options: Mapping[str, Any] = {}


class _Died(Exception):
    """The child ended while it was asked something."""


def _command(timeout_seconds: float, memory_megabytes: int) -> list[str]:
    # -P keeps the current folder off the path: a file there must not shadow a module of the child.
    return [sys.executable, "-P", "-m", "zppo_jax.rewards.worker", str(timeout_seconds), str(memory_megabytes)]


class _Worker:
    """One child process. Not thread-safe: the pool lends it to one thread at a time."""

    def __init__(self, command: list[str]):
        # Its own session: Ctrl-C in the terminal is for the parent, which finishes its step.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=children.environment(), start_new_session=True,
        )  # fmt: skip
        self._owner = os.getpid()
        self._buffer = b""
        self.tasks = 0
        self.ready = False

    def wait_until_ready(self) -> None:
        """Block until the child has imported its libraries. Raises TimeoutError or _Died."""
        if not self.ready:
            self._reply(_STARTUP_SECONDS)
            self.ready = True

    def ask(self, pair: Pair, seconds: float) -> str:
        """The child's reply. Raises TimeoutError when it takes longer, _Died when the child ends."""
        assert self._process.stdin is not None
        self.tasks += 1
        try:
            self._process.stdin.write(json.dumps(pair).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise _Died from error
        return json.loads(self._reply(seconds))

    def _reply(self, seconds: float) -> bytes:
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                chunk = os.read(self._process.stdout.fileno(), 4096)
                if not chunk:
                    raise _Died
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def kill(self) -> None:
        """End the child without touching its pipes, which another thread may be reading. A forked copy does nothing."""
        if os.getpid() == self._owner:
            self._process.kill()

    def kill_and_reap(self) -> None:
        """`kill`, and wait so that no zombie is left; for the end of the process. A forked copy does nothing."""
        if os.getpid() == self._owner:
            self.reap()

    def reap(self, grace_seconds: float = 0.0) -> int:
        """Kill the child unless it ends by itself within the grace, and free its pipes. Returns its exit code."""
        try:
            self._process.wait(timeout=grace_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            _close_quietly(pipe)
        return self._process.wait()


def _close_quietly(pipe: Any) -> None:
    with contextlib.suppress(OSError):  # unsent bytes for a child that is gone
        pipe.close()


class ScoringPool:
    """Scores responses, with at most `num_workers` child processes that start when the first one is needed.

    `timeout_seconds` is the processor time one comparison may take (the kernel counts whole seconds, rounded up); four
    times as much on the wall clock is the limit for anything that sleeps. A child is replaced after `max_tasks`
    comparisons, since computer algebra leaks memory. Any thread may call; close it, or use it as a context manager.

    Counters, cumulative: `timeouts`, `errors` (a child died, or could not compare), `restarts` (children replaced).
    """

    def __init__(
        self,
        num_workers: int = 1,
        timeout_seconds: float = 1.0,
        *,
        max_tasks: int = 1000,
        memory_megabytes: int = 1024,
    ):
        sizes = {"num_workers": num_workers, "timeout_seconds": timeout_seconds, "max_tasks": max_tasks}
        for name, value in sizes.items():
            if not value > 0:
                raise ValueError(f"ScoringPool {name} {value!r} is not usable: give a positive number")
        self.timeout_seconds = timeout_seconds
        self.max_tasks = max_tasks
        self.timeouts = self.errors = self.restarts = 0
        self._num_workers = num_workers
        self._command = _command(timeout_seconds, memory_megabytes)
        self._lock = threading.Lock()
        self._cache: collections.OrderedDict[Pair, Outcome] = collections.OrderedDict()
        self._closed = False
        self._owner = os.getpid()
        # A slot holds a child or None (not started, or ended). Last in, first out: light load keeps to one warm child.
        self._slots: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(num_workers):
            self._slots.put(None)
        self._alive: set[_Worker] = set()
        self._finalizer = weakref.finalize(self, _stop_all, self._alive)

    def __enter__(self) -> ScoringPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def counters(self) -> dict[str, int]:
        """The counters by name, for metrics."""
        return {"timeouts": self.timeouts, "errors": self.errors, "restarts": self.restarts}

    def close(self) -> None:
        """Kill and reap the children; comparisons in progress end with status ERROR. Closing twice is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for worker in self._alive:
                worker.kill()
        # Each thread that still holds a slot gives it back, now that its child is gone.
        for _ in range(self._num_workers):
            if (worker := self._slots.get()) is not None:
                self._reap(worker)

    def score(
        self, response: str, gold: Gold, answer_type: str = "math", region: str = "final", **options: Any
    ) -> Verdict:
        """One verdict; see `zppo_jax.rewards.score`."""
        return self.score_many([Item(response, gold, answer_type, region, options)])[0]

    def score_many(self, items: Iterable[Item | tuple[Any, ...]]) -> list[Verdict]:
        """The verdicts of all items, in their order. Equal (gold, answer) pairs are compared once.

        Raises:
          ValueError: unknown answer type or region, or a closed pool. Model text never raises.
        """
        if self._closed or os.getpid() != self._owner:
            raise ValueError("this ScoringPool is closed, or was made before a fork: make a new one")
        graded = [grade(*one[:4], **one.options) for one in map(_item, items)]
        outcomes = self._compare_all([one.pair for one in graded if isinstance(one, Pending)])
        return [Verdict(*outcomes[one.pair], one.answer) if isinstance(one, Pending) else one for one in graded]

    def _compare_all(self, pairs: list[Pair]) -> dict[Pair, Outcome]:
        outcomes = {pair: self._cache[pair] for pair in pairs if pair in self._cache}
        missing = [pair for pair in dict.fromkeys(pairs) if pair not in outcomes]
        if len(missing) == 1:
            outcomes[missing[0]] = self.compare(*missing[0])
        elif missing:
            with ThreadPoolExecutor(min(self._num_workers, len(missing)), thread_name_prefix="scoring") as threads:
                outcomes |= zip(missing, threads.map(lambda pair: self.compare(*pair), missing), strict=True)
        return outcomes

    def compare(self, gold: str, answer: str) -> Outcome:
        """Compare two expressions that passed the gates of `expression.refusal`, in a child. Never raises for them."""
        worker, reusable = self._slots.get(), None
        try:
            worker = worker or self._start()
            worker.wait_until_ready()
            reply = worker.ask((gold, answer), _WALL_FACTOR * self.timeout_seconds)
            reusable = worker if worker.tasks < self.max_tasks else None
            return self._record((gold, answer), reply)
        except (TimeoutError, _Died, OSError) as failure:
            return self._failure(worker, failure)
        finally:
            # Also after KeyboardInterrupt: a child that owes a reply must not get another question.
            if worker is not None and reusable is None:
                self._reap(worker)
                self._count("restarts")
            self._slots.put(reusable)

    def _start(self) -> _Worker:
        with self._lock:
            if self._closed:
                raise _Died
            worker = _Worker(self._command)
            self._alive.add(worker)
        return worker

    def _record(self, pair: Pair, reply: str) -> Outcome:
        if reply not in _COMPARED:
            self._count("errors")
            return _FAILED
        with self._lock:
            self._cache[pair] = _COMPARED[reply]
            if len(self._cache) > _CACHE_SIZE:
                self._cache.popitem(last=False)
        return _COMPARED[reply]

    def _failure(self, worker: _Worker | None, failure: Exception) -> Outcome:
        """Not cached: what failed on a loaded machine may succeed later."""
        code = worker.reap(grace_seconds=1.0) if worker and isinstance(failure, _Died) else 0
        if isinstance(failure, TimeoutError) or code == -signal.SIGXCPU:
            self._count("timeouts")
            return False, Status.TIMEOUT
        self._count("errors")
        return _FAILED

    def _reap(self, worker: _Worker) -> None:
        worker.reap()
        with self._lock:
            self._alive.discard(worker)

    def _count(self, counter: str) -> None:
        with self._lock:
            setattr(self, counter, getattr(self, counter) + 1)


def _item(item: Item | tuple[Any, ...]) -> Item:
    return item if isinstance(item, Item) else Item(*item)


def _stop_all(workers: set[_Worker]) -> None:
    """At interpreter exit, or when a pool is dropped without being closed."""
    for worker in tuple(workers):
        worker.kill_and_reap()
