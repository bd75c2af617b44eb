"""A lane does its works in order, in one thread, and gives them up when it must."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from zppo_jax.rollout.lane import Lane


@pytest.fixture
def lane() -> Iterator[Lane]:
    made = Lane()
    yield made
    made.close()


def counting(number: int, seen: list[tuple[int, str]], go_on: threading.Event | None = None):
    """A work that yields three numbers, the first one before it waits."""

    def make():
        for part in range(3):
            seen.append((number + part, threading.current_thread().name))
            yield number + part
            if go_on is not None:
                go_on.wait(10)

    return make


def test_works_are_done_in_order_whoever_waits_first(lane):
    seen: list[tuple[int, str]] = []
    works = [lane.begin(counting(number, seen)) for number in (0, 10, 20)]
    assert list(works[2]) == [20, 21, 22] and list(works[0]) == [0, 1, 2] and list(works[0]) == []
    assert [number for number, _ in seen] == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert len({thread for _, thread in seen}) == 1 and seen[0][1] != threading.current_thread().name


def test_an_error_comes_after_what_was_done_before_it(lane):
    def failing():
        yield 1
        raise ZeroDivisionError("in the lane")

    work, after = lane.begin(failing), lane.begin(counting(5, []))
    assert next(work) == 1
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="in the lane"):
            next(work)
    assert list(after) == [5, 6, 7], "the lane goes on"


def test_what_is_given_up_has_ended_and_what_waited_never_begins(lane):
    go_on, closed, seen = threading.Event(), threading.Event(), list[tuple[int, str]]()

    def running():
        try:
            yield from counting(0, seen, go_on)()
        finally:
            closed.set()

    work, waiting = lane.begin(running), lane.begin(counting(10, seen))
    assert next(work) == 0
    threading.Timer(0.1, go_on.set).start()
    lane.give_up()
    assert closed.is_set() and work.ended and waiting.ended
    assert list(waiting) == [] and len(list(work)) < 2 and all(number < 3 for number, _ in seen)
    assert list(lane.begin(counting(7, seen))) == [7, 8, 9], "the lane can be used again"


def test_who_waits_reports_and_an_exception_of_the_report_ends_the_work():
    """The lane's own thread reports nothing: its progress would write over that of the student."""
    lines: list[tuple[str, str]] = []
    go_on, stop, ended = threading.Event(), threading.Event(), threading.Event()

    def report(line: str) -> None:
        lines.append((line, threading.current_thread().name))
        if stop.is_set():
            go_on.set()
            raise KeyboardInterrupt

    def working():
        try:
            lane.note("half")
            go_on.wait(10)
            yield 1
            time.sleep(10)  # never reached: the work has been ended
            yield 2
        finally:
            ended.set()

    lane = Lane(report)
    work = lane.begin(working)
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(KeyboardInterrupt):
        next(work)
    assert ended.is_set() and work.ended
    assert lines[0] == ("half", threading.current_thread().name) and len({line for line, _ in lines}) == 1
    lane.close()
