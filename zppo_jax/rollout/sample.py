"""Samples the responses to a list of requests: all at once (`sample`), or as they finish (`stream`)."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

from zppo_jax import parallel
from zppo_jax.rollout.counters import Counters
from zppo_jax.rollout.engine import Engine
from zppo_jax.rollout.requests import Request, Sample
from zppo_jax.rollout.session import Session

Finished = list[tuple[int, int, Sample]]
"""The rollouts that ended in a chunk: (request, number of the sample, sample)."""


def sample(engine: Engine, params: dict[str, Any], requests: Sequence[Request]) -> list[list[Sample]]:
    """Samples all responses of each request; returns them in order. Adds to the engine's counters."""
    found: list[dict[int, Sample]] = [{} for _ in requests]
    for finished in stream(engine, params, requests):
        for request, number, one in finished:
            found[request][number] = one
    return [[samples[number] for number in sorted(samples)] for samples in found]


def stream(engine: Engine, params: dict[str, Any], requests: Sequence[Request]) -> Iterator[Finished]:
    """Yields the rollouts that ended in each chunk, while the next chunk runs; prompts of short rings first. Reports
    progress after every chunk, and adds to the engine's counters at the end.

    It begins with the iteration, or at once in the engine's lane, if it has one."""
    if engine.lane is None:
        return _stream(engine, params, requests)
    return engine.lane.begin(lambda: _in_lane(engine, params, requests))


def _in_lane(engine: Engine, params: dict[str, Any], requests: Sequence[Request]) -> Generator[Finished]:
    try:
        yield from _stream(engine, params, requests)
    finally:  # several samplers take turns in a lane, and the devices might not hold what all of them keep
        engine.kept.release()


def _stream(engine: Engine, params: dict[str, Any], requests: Sequence[Request]) -> Generator[Finished]:
    done = Counters()
    chunks = _run_rings(engine, params, requests, done)
    while True:
        with parallel.use(engine.compiler.mesh):  # not while the caller runs
            finished = next(chunks, None)
        if finished is None:
            break
        yield finished
    engine.kept.counters.add(done)


def _run_rings(
    engine: Engine, params: dict[str, Any], requests: Sequence[Request], counters: Counters
) -> Iterator[Finished]:
    """Runs one session for each ring, one after the other."""
    start, total = time.monotonic(), sum(request.num_samples for request in requests)
    buckets = [engine.shapes.bucket_of(request.features, request.uid) for request in requests]
    order = sorted(range(len(requests)), key=buckets.__getitem__)

    def run_ring(ring: int, members: Iterable[int]) -> Iterator[Finished]:
        """Runs one session; its slots are freed at the end, before those of the next ring are made."""
        session = Session(engine, params, ring, counters)
        place = {session.submit(requests[index]): index for index in members}
        while session.busy:
            events = session.advance()
            if engine.report:
                engine.report(counters.line(total, time.monotonic() - start))
            yield [(place[one.ticket], one.index, one.sample) for one in events if one.sample is not None]

    for ring, members in itertools.groupby(order, key=lambda index: engine.shapes.ring_of(buckets[index])):
        yield from run_ring(ring, members)
