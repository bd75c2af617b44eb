"""The host side of sampling: chooses which prompt is prefilled next and which slot takes which rollout.

Between two chunks of decoding the host removes the rollouts that have ended and gives free slots to waiting ones. Its
decisions depend on the requests, their tokens and their seeds, never on the clock, so a run can be repeated.

Shape suffixes: B rows (slots), K tokens of a chunk.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from zppo_jax.rollout.admission import Admission
from zppo_jax.rollout.counters import Counters
from zppo_jax.rollout.engine import Engine, Prefilled
from zppo_jax.rollout.requests import Request, Sample
from zppo_jax.rollout.state import Chunk
from zppo_jax.types import FinishReason


@dataclasses.dataclass(frozen=True, eq=False)
class Event:
    """The tokens that a chunk added to one rollout; `sample` is the whole rollout once it has ended."""

    ticket: int
    index: int
    token_ids_K: np.ndarray
    logprobs_K: np.ndarray
    sample: Sample | None


@dataclasses.dataclass(eq=False)
class _Rollout:
    """A rollout in a slot."""

    ticket: int
    index: int
    request: Request
    limit: int
    count: int = 0
    tokens: list[np.ndarray] = dataclasses.field(default_factory=list)
    logprobs: list[np.ndarray] = dataclasses.field(default_factory=list)
    kept: list[np.ndarray] = dataclasses.field(default_factory=list)

    def add(self, tokens_K: np.ndarray, logprobs_K: np.ndarray, kept_K: np.ndarray) -> None:
        self.tokens.append(tokens_K)
        self.logprobs.append(logprobs_K)
        self.kept.append(kept_K)
        self.count += len(tokens_K)

    def to_sample(self, reason: FinishReason) -> Sample:
        def joined(parts: list[np.ndarray], dtype: Any) -> np.ndarray:
            return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype)

        tokens_T, logprobs_T = joined(self.tokens, np.int32), joined(self.logprobs, np.float32)
        return Sample(tokens_T, logprobs_T, reason, joined(self.kept, np.float32))


@dataclasses.dataclass(eq=False)
class _Source:
    """Prefilled prompts and the rollouts that still wait for a slot: (ticket, number of the sample, prompt)."""

    prefilled: Prefilled
    waiting: deque[tuple[int, int, int]]


class Session:
    """Takes requests, gives rollouts. `advance` runs one chunk on the device while the caller uses the previous one."""

    def __init__(
        self, engine: Engine, params: dict[str, Any], ring: int | None = None, counters: Counters | None = None
    ) -> None:
        """`ring` is the number of key slots (Shapes.ring_of), by default as many as the longest prompt needs. The
        session adds to `counters`."""
        self.engine, self.params = engine, params
        self.counters = Counters() if counters is None else counters
        self._weights = engine.get_weights(params)
        self._ring = ring or engine.shapes.num_keys
        self._slots = engine.make_slots(params, self._ring)
        self._rows: list[_Rollout | None] = [None] * engine.num_slots
        self._requests: dict[int, Request] = {}
        self._buckets: dict[int, int] = {}
        self._left: dict[int, int] = {}
        self._waiting: deque[int] = deque()
        self._source: _Source | None = None
        self._ended: set[int] = set()
        self._running: Chunk | None = None
        self._next_ticket = 0

    @property
    def busy(self) -> bool:
        """Whether any rollout is waiting or running."""
        waiting = self._waiting or (self._source is not None and self._source.waiting)
        return bool(self._running is not None or waiting or any(self._rows))

    @property
    def num_free(self) -> int:
        """The number of slots without a rollout."""
        return self._rows.count(None)

    def submit(self, request: Request) -> int:
        """Queues a request and returns its ticket. Raises PromptTooLongError if no bucket holds it."""
        if request.sampling.penalises and not self.engine.penalises:
            raise ValueError("this engine was made without penalties: Engine(penalises=True)")
        if request.stop_strings and self.engine.decode_text is None:
            raise ValueError("stop strings need Engine(decode_text=...)")
        bucket = self.engine.shapes.bucket_of(request.features, request.uid)
        if self.engine.shapes.buckets[bucket] + self.engine.shapes.max_new_tokens > self._ring:
            raise ValueError(f"prompt {request.uid} and its response do not fit this session's {self._ring} key slots")
        ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
        if request.num_samples > 0 and self.engine.limit_of(request) > 0:
            self._requests[ticket], self._buckets[ticket] = request, bucket
            self._left[ticket] = request.num_samples
            self._waiting.append(ticket)
        return ticket

    def cancel(self, ticket: int) -> list[Event]:
        """Cancels a request; its slots are free from the next chunk on. Returns its running rollouts, aborted."""
        events = []
        if ticket in self._waiting:
            self._waiting.remove(ticket)
        if self._source is not None:
            self._source.waiting = deque(one for one in self._source.waiting if one[0] != ticket)
        for slot, rollout in enumerate(self._rows):
            if rollout is not None and rollout.ticket == ticket:
                self._rows[slot] = None
                self._ended.add(slot)
                none = np.zeros(0)
                events.append(Event(ticket, rollout.index, none, none, rollout.to_sample("abort")))
        self._forget(ticket)
        return events

    def advance(self) -> list[Event]:
        """Waits for the running chunk, fills free slots, starts the next chunk; returns the finished one's events."""
        events = self._collect()
        self._admit()
        self._start()
        return events

    def _forget(self, ticket: int) -> None:
        for table in (self._requests, self._buckets, self._left):
            table.pop(ticket, None)

    # ---------------------------------------------------------------- a chunk ends

    def _collect(self) -> list[Event]:
        if self._running is None:
            return []
        result, self._running = jax.device_get(self._running), None
        self.counters.steps += int(result.num_steps)
        self.counters.slot_steps += int(result.num_steps) * len(self._rows)
        return [self._event(slot, rollout, result) for slot, rollout in enumerate(self._rows) if rollout is not None]

    def _event(self, slot: int, rollout: _Rollout, result: Chunk) -> Event:
        num_new = int(result.count_B[slot]) - rollout.count
        columns = result.tokens_BK, result.logprobs_BK, result.kept_logprobs_BK
        new = [np.array(column_BK[slot, :num_new]) for column_BK in columns]
        reason: FinishReason | None = None
        if not result.live_B[slot]:
            reason = "stop" if result.stopped_B[slot] else "length"
        if rollout.request.stop_strings and (end := self._stop_string_end(rollout, new[0])) is not None:
            new, reason = [part[:end] for part in new], "stop"
            self._ended.add(slot)
        rollout.add(*new)
        self.counters.tokens += len(new[0])
        sample = self._end(slot, rollout, reason) if reason else None
        return Event(rollout.ticket, rollout.index, new[0], new[1], sample)

    def _end(self, slot: int, rollout: _Rollout, reason: FinishReason) -> Sample:
        self._rows[slot] = None
        self.counters.finished += 1
        self.counters.truncated += reason == "length"
        self.counters.longest = max(self.counters.longest, rollout.count)
        self._left[rollout.ticket] -= 1
        if not self._left[rollout.ticket]:
            self._forget(rollout.ticket)
        return rollout.to_sample(reason)

    def _stop_string_end(self, rollout: _Rollout, new_K: np.ndarray) -> int | None:
        """The number of new tokens up to the one that completes a stop string; None if none does."""
        tokens = np.concatenate([np.zeros(0, np.int32), *rollout.tokens, new_K]).astype(np.int32)
        stops, ends = rollout.request.stop_strings, range(1, len(new_K) + 1)
        if not self._contains_stop(tokens, stops):
            return None
        return next(end for end in ends if self._contains_stop(tokens[: rollout.count + end], stops))

    def _contains_stop(self, tokens_T: np.ndarray, stops: Sequence[str]) -> bool:
        assert self.engine.decode_text is not None
        text = self.engine.decode_text(tokens_T)
        return any(stop in text for stop in stops)

    # ---------------------------------------------------------------- the next chunk begins

    def _admit(self) -> None:
        while (free := [slot for slot, rollout in enumerate(self._rows) if rollout is None]) and self._find_source():
            source = self._source
            assert source is not None
            admitted = []
            for slot in free[: len(source.waiting)]:
                ticket, index, prompt = source.waiting.popleft()
                request = self._requests[ticket]
                self._rows[slot] = rollout = _Rollout(ticket, index, request, self.engine.limit_of(request))
                self._ended.discard(slot)
                admitted.append(Admission(slot, prompt, request, index, rollout.limit))
            self._slots = self.engine.fill(self.params, self._slots, source.prefilled, admitted)

    def _find_source(self) -> bool:
        """Whether a prefilled prompt has waiting rollouts; prefills the next prompts of one bucket if none has."""
        if self._source is not None and not self._source.waiting:
            self._source = None
        if self._source is None and self._waiting:
            bucket = self._buckets[self._waiting[0]]
            tickets = [ticket for ticket in self._waiting if self._buckets[ticket] == bucket]
            tickets = tickets[: self.engine.prompts_per_call]
            chosen = set(tickets)
            self._waiting = deque(ticket for ticket in self._waiting if ticket not in chosen)
            requests = [self._requests[ticket] for ticket in tickets]
            prefilled = self.engine.prefill(self.params, requests, bucket)
            waiting = deque(
                (ticket, index, prompt)
                for prompt, (ticket, request) in enumerate(zip(tickets, requests, strict=True))
                for index in range(request.num_samples)
            )
            self._source = _Source(prefilled, waiting)
            self.counters.prompts += len(tickets)
        return self._source is not None

    def _start(self) -> None:
        running = [rollout for rollout in self._rows if rollout is not None]
        if not running:
            return
        num_steps = min(self.engine.chunk, max(rollout.limit - rollout.count for rollout in running))
        truncates = any(rollout.request.sampling.truncates for rollout in running)
        ended, self._ended = sorted(self._ended), set()
        self._slots, self._running = self.engine.decode(
            self.params, self._weights, self._slots, truncates, num_steps, ended
        )
