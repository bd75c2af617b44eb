"""The judge of a run: rulings on many cases at once, each asked once, with a deadline for every step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Protocol

from zppo_jax.judge.cache import Kept, VerdictCache, key_of
from zppo_jax.judge.prompt import Case
from zppo_jax.judge.verdict import Ruling, parse
from zppo_jax.remote import Asker as Waited
from zppo_jax.remote import Unanswered, Waiting

COUNTS = ("judged", "cached", "malformed", "failed")


class Asker(Waited, Protocol):
    """Asks a judge model: at endpoints (`asking.RemoteJudge`) or in this process (`actors.LocalJudge`)."""

    def begin(self) -> None:
        """Begins a step."""
        ...

    def submit(self, case: Case) -> Future[str]:
        """Accepts a case; its future gets the output, or an Unanswered. Any thread may call."""
        ...

    def close(self) -> None: ...


class Judge:
    """Rules on cases, with the verdicts of `cache` first. What fails is not kept, and asked again when it comes again.

    `model` is the name of the judge's model, of which each verdict is. `deadline_seconds` is how long all calls of
    `decide` in a step may wait together; what runs beside the sampling (`ahead`) is not counted. The asker may come
    later, but before the first case. Steps follow each other in one thread; `ahead` may be called in any.
    """

    def __init__(
        self,
        cache: VerdictCache,
        model: str,
        max_tokens: int,
        deadline_seconds: float,
        asker: Asker | None = None,
    ) -> None:
        self.asker, self.model, self.max_tokens = asker, model, max_tokens
        self._cache, self._waiting = cache, Waiting(deadline_seconds, "judge.deadline_seconds")
        self._lock, self._step = threading.Lock(), 0
        self._found: dict[bytes, Kept] = {}  # verdicts that were needed in this step
        self._asked: dict[bytes, Future[str]] = {}
        self._counted: set[bytes] = set()
        self._counts: dict[str, int] = dict.fromkeys(COUNTS, 0)

    def begin(self, step: int) -> None:
        """Begins a step: a new deadline, counts from zero, and an endpoint that was down gets another chance."""
        if self.asker is not None:
            self.asker.begin()
        with self._lock:
            self._step = step
            self._waiting.begin()
            self._found, self._asked, self._counted = {}, {}, set()
            self._counts = dict.fromkeys(COUNTS, 0)

    def ahead(self, cases: Sequence[Case]) -> None:
        """Starts asking about cases on which `decide` will be asked to rule."""
        self._send([(key_of(case, self.model, self.max_tokens), case) for case in cases])

    def decide(self, cases: Sequence[Case], report: Callable[[str], None] | None = None) -> list[Ruling]:
        """The rulings on the cases, in order; FAILED where the judge gave none in time.

        `report` gets a line about the progress now and then; an exception in it ends the waiting.
        """
        keyed = [(key_of(case, self.model, self.max_tokens), case) for case in cases]
        self._send(keyed)
        asked = {key: self._asked[key] for key, _ in keyed if key in self._asked}
        assert self.asker is not None
        for done in self._waiting.batches(self.asker, asked, report, "judge: {done} of {total} responses"):
            self._keep(done)
        return [self._count(key) for key, _ in keyed]

    def counts(self) -> dict[str, int]:
        """What happened in this step, by the names of COUNTS. `judged`: responses that it ruled on; `cached`: responses
        whose verdict was there, from an earlier step or from the same response in this one; `malformed`: those of both
        that are wrong because an output was no verdict; `failed`: responses without a ruling.

        A step that is made again after a kill finds the verdicts of its first attempt, and counts them as judged: its
        numbers are the same.
        """
        return dict(self._counts)

    @property
    def seconds(self) -> float:
        """How long `decide` took in this step."""
        return self._waiting.seconds

    def close(self) -> None:
        """Ends the asker and closes the cache."""
        if self.asker is not None:
            self.asker.close()
        self._cache.close()

    def _send(self, keyed: Sequence[tuple[bytes, Case]]) -> None:
        """Looks the cases up, and submits those without a verdict, each once."""
        with self._lock:
            new = {key: case for key, case in keyed if key not in self._found and key not in self._asked}
            kept = self._cache.get(new)
            self._found |= kept
            assert self.asker is not None, "the judge has no asker yet"
            self._asked |= {key: self.asker.submit(case) for key, case in new.items() if key not in kept}

    def _keep(self, done: dict[bytes, Future[str]]) -> None:
        """Reads the outputs; those that failed may be asked again."""
        verdicts: dict[bytes, Kept] = {}
        for key, future in done.items():
            try:
                verdicts[key] = Kept(parse(future.result()), self._step)
            except (Unanswered, CancelledError):
                continue
        self._cache.add(verdicts)
        with self._lock:
            self._found |= verdicts
            for key in done:
                del self._asked[key]

    def _count(self, key: bytes) -> Ruling:
        kept = self._found.get(key)
        if kept is None:
            self._counts["failed"] += 1
            return Ruling.FAILED
        first = key not in self._counted and kept.step >= self._step
        self._counted.add(key)
        self._counts["judged" if first else "cached"] += 1
        self._counts["malformed"] += kept.ruling is Ruling.MALFORMED
        return kept.ruling
