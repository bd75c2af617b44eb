"""Killable worker processes for the answers that need a computer algebra system, and scoring of many responses.

math-verify's own timeout is an alarm of the main thread: it does not work in other threads and overwrites other alarms.
Without it a single answer can hang a run. Here each comparison runs in a child (`worker`) that is killed and replaced
when it takes too long or dies. If the response caused that, it counts as wrong. If the child failed for any other
reason, the comparison is repeated once on a fresh child; if that fails too, it is undecided.
"""

from __future__ import annotations

import collections
import contextlib
import math
import os
import queue
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Self

from zppo_jax import children
from zppo_jax.rewards.child import MAX_BATCH, Child, ChildFailed, NotStarted, Task, UsedUp
from zppo_jax.rewards.grade import Gold, Pending, grade
from zppo_jax.rewards.verdict import Status, Verdict

# A busy machine must not turn right answers into wrong ones: processor time decides, the wall clock is the backstop.
_WALL_FACTOR = 4.0
_CACHE_SIZE = 65_536
MEMORY_MEGABYTES = 1024
"""The address space of a child."""

Pair = tuple[str, str]
Comparison = tuple[bool, Status]
"""Whether a child finds a response right, and the reason for it."""

_COMPARISONS: dict[str, Comparison] = {
    "equal": (True, Status.OK),
    "different": (False, Status.OK),
    "malformed": (False, Status.MALFORMED),
    "gold": (False, Status.ERROR),
}
"""The outcome for each reply of a child."""
_COUNTERS = ("timeouts", "errors", "restarts", "retries", "undecided")
_USED_UP: Comparison = (False, Status.TIMEOUT)
_FAILED: Comparison = (False, Status.ERROR)


class Answer(NamedTuple):
    """One response to score; the fields are `score`'s arguments."""

    response: str
    gold: Gold
    answer_type: str = "math"
    region: str = "final"
    options: Mapping[str, Any] = {}


class Workers:
    """At most `num_workers` child processes that start when the first one is needed, and what they are asked.

    `timeout_seconds` is the processor time that one task may take (the kernel counts whole seconds, rounded up). Four
    times that is the limit on the wall clock, for a child that hangs. A child is replaced after `max_tasks` tasks,
    since computer algebra leaks memory. Any thread may call. Close it, or use it as a context manager.
    """

    def __init__(self, command: Sequence[str], num_workers: int, timeout_seconds: float, max_tasks: int):
        sizes = {"num_workers": num_workers, "timeout_seconds": timeout_seconds, "max_tasks": max_tasks}
        for name, value in sizes.items():
            if not value > 0:
                raise ValueError(f"{type(self).__name__} {name} {value!r} is not usable: give a positive number")
        self.timeout_seconds = timeout_seconds
        self.max_tasks = max_tasks
        self._counts: dict[str, int] = dict.fromkeys(_COUNTERS, 0)
        self._num_workers = num_workers
        self._command = command
        self._lock = threading.Lock()
        self._closed = False
        self._owner = os.getpid()
        # A slot holds a child or None (not started, or ended). Last in, first out: light load keeps to one warm child.
        self._slots: queue.LifoQueue[Child | None] = queue.LifoQueue()
        for _ in range(num_workers):
            self._slots.put(None)
        self._alive: set[Child] = set()
        self._threads: ThreadPoolExecutor | None = None
        self._finalizer = weakref.finalize(self, _stop_all, self._alive)

    def outcome(self, reply: Any) -> Comparison:
        """What a child's reply means."""
        return _COMPARISONS[reply]

    def require_open(self) -> None:
        """Raises ValueError if it is closed or was made before a fork."""
        if self._closed or os.getpid() != self._owner:
            raise ValueError(f"this {type(self).__name__} is closed, or was made before a fork: make a new one")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def counters(self) -> dict[str, int]:
        """The counters by name, cumulative, for metrics.

        Comparisons: `timeouts` (a limit was used up), `errors` (no outcome), `retries` (repeated because a child
        failed). Children: `restarts` (replaced). Verdicts: `undecided`.
        """
        with self._lock:
            return dict(self._counts)

    def close(self) -> None:
        """Kill and reap the children; comparisons in progress end with status ERROR. Closing twice is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for child in self._alive:
                child.kill()
        # Each thread that still holds a slot returns it, now that its child is gone.
        for _ in range(self._num_workers):
            if (child := self._slots.get()) is not None:
                self._reap(child)
        self._threads = None  # they end when the last call that uses them has returned

    def _spread(self, tasks: Sequence[Task]) -> list[Comparison]:
        """The outcomes of all tasks, in order, from all children."""
        size = min(MAX_BATCH, math.ceil(len(tasks) / self._num_workers)) or 1
        batches = [tasks[start : start + size] for start in range(0, len(tasks), size)]
        mapped = map if len(batches) < 2 else self._executor().map
        return [outcome for compared in mapped(self._ask_child, batches) for outcome in compared]

    def _executor(self) -> ThreadPoolExecutor:
        """The threads that wait for children, made once: starting them costs more than the comparisons of a call."""
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self._num_workers, thread_name_prefix="scoring")
            return self._threads

    def _ask_child(self, tasks: Sequence[Task]) -> list[Comparison]:
        """Ask children; the outcomes are in the order of the tasks.

        A task at which a child fails twice is undecided, whatever the second failure was. A response gains nothing from
        causing that, and a machine short of memory may kill two children in a row.
        """
        outcomes: list[Comparison] = []
        failures = 0  # of the first task that has no outcome yet
        while len(outcomes) < len(tasks):
            try:
                with self._lent_child(fresh=failures > 0) as child:
                    rest = tasks[len(outcomes) :][: self.max_tasks - child.tasks]
                    for reply in child.ask(rest, _WALL_FACTOR * (self.timeout_seconds + 1)):
                        outcomes.append(self._record(tasks[len(outcomes)], self.outcome(reply)))
                        failures = 0
            except UsedUp:
                outcomes.append(self._record(tasks[len(outcomes)], _USED_UP))
                failures = 0
            except ChildFailed as failure:
                failures += 1
                if failures == 1:
                    self._count("retries")
                    continue
                # No child could be started: give up on all tasks, because waiting again for each would take minutes.
                lost = len(tasks) - len(outcomes) if isinstance(failure, NotStarted) else 1
                self._count("errors", lost)
                outcomes += [_FAILED] * lost
                failures = 0
        return outcomes

    @contextlib.contextmanager
    def _lent_child(self, fresh: bool) -> Iterator[Child]:
        """Lend a child that is ready. It returns to its slot, unless the block raised: then it is ended."""
        child, reusable = self._slots.get(), None
        try:
            if child is not None and fresh:
                self._replace(child)
                child = None
            child = child or self._start()
            child.wait_until_ready()
            yield child
            reusable = child if child.tasks < self.max_tasks else None
        finally:
            # Also after KeyboardInterrupt: a child that owes a reply must not get another question.
            if child is not None and reusable is None:
                self._replace(child)
            self._slots.put(reusable)

    def _start(self) -> Child:
        with self._lock:
            if self._closed:
                raise NotStarted("the pool is closed")
            child = Child(self._command)
            self._alive.add(child)
        return child

    def _record(self, task: Task, outcome: Comparison) -> Comparison:
        """Count an outcome that depends on the task alone; failures of a child are counted where they happen."""
        if outcome[1] in (Status.TIMEOUT, Status.ERROR):
            self._count("timeouts" if outcome == _USED_UP else "errors")
        return outcome

    def _reap(self, child: Child) -> None:
        child.reap()
        with self._lock:
            self._alive.discard(child)

    def _replace(self, child: Child) -> None:
        self._reap(child)
        self._count("restarts")

    def _count(self, counter: str, number: int = 1) -> None:
        with self._lock:
            self._counts[counter] += number


class ScoringPool(Workers):
    """Scores responses by rule; children compare what needs computer algebra."""

    def __init__(
        self,
        num_workers: int = 1,
        timeout_seconds: float = 1.0,
        *,
        max_tasks: int = 1000,
        memory_megabytes: int = MEMORY_MEGABYTES,
    ):
        command = children.command("zppo_jax.rewards.worker", timeout_seconds, memory_megabytes)
        super().__init__(command, num_workers, timeout_seconds, max_tasks)
        self._cache: collections.OrderedDict[Pair, Comparison] = collections.OrderedDict()

    def score(
        self, response: str, gold: Gold, answer_type: str = "math", region: str = "final", **options: Any
    ) -> Verdict:
        """Score one response; see `zppo_jax.rewards.score`."""
        return self.score_many([Answer(response, gold, answer_type, region, options)])[0]

    def score_many(self, items: Iterable[Answer | tuple[Any, ...]]) -> list[Verdict]:
        """The verdicts of all items, in their order. Equal (gold, answer) pairs are compared once.

        Raises:
          ValueError: unknown answer type or region, or a closed pool. Model text never raises.
        """
        self.require_open()
        graded = [grade(*one[:4], **one.options) for one in map(_item, items)]
        outcomes = self._compare_all([one.pairs[0] for one in graded if isinstance(one, Pending)])
        again = [one for one in graded if isinstance(one, Pending) and not outcomes[one.pairs[0]][0]]
        outcomes |= self._compare_all([pair for one in again for pair in one.pairs[1:]])
        verdicts = [_verdict(one, outcomes) if isinstance(one, Pending) else one for one in graded]
        self._count("undecided", sum(verdict.status == Status.ERROR for verdict in verdicts))  # not those for a judge
        return verdicts

    def _compare_all(self, pairs: list[Pair]) -> dict[Pair, Comparison]:
        outcomes = {pair: self._cache[pair] for pair in pairs if pair in self._cache}
        missing = [pair for pair in dict.fromkeys(pairs) if pair not in outcomes]
        return outcomes | dict(zip(missing, self._spread(missing), strict=True))

    def compare(self, gold: str, answer: str) -> Comparison:
        """Compare two expressions that passed the gates of `gates.refusal`, in a child. Never raises for them."""
        return self._ask_child([(gold, answer)])[0]

    def _record(self, task: Task, outcome: Comparison) -> Comparison:
        """Also caches the outcome."""
        with self._lock:
            self._cache[task] = outcome
            if len(self._cache) > _CACHE_SIZE:
                self._cache.popitem(last=False)
        return super()._record(task, outcome)


def _verdict(pending: Pending, outcomes: Mapping[Pair, Comparison]) -> Verdict:
    """Right if one of the pairs is equal; else the outcome of the first."""
    compared = [outcomes[pair] for pair in pending.pairs if pair in outcomes]
    return Verdict(*next((outcome for outcome in compared if outcome[0]), compared[0]), pending.answer)


def _item(item: Answer | tuple[Any, ...]) -> Answer:
    return item if isinstance(item, Answer) else Answer(*item)


def _stop_all(children: set[Child]) -> None:
    """Kill and reap the children at interpreter exit, or when a pool is dropped without being closed."""
    for child in tuple(children):
        child.kill_and_reap()
