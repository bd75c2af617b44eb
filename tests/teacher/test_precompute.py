"""Answers sampled before a run: what is refused does not stop the rest, and what is open is asked again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests import tiny_model
from zppo_jax.command.heartbeat import Heartbeat
from zppo_jax.data.digits import DigitsSource
from zppo_jax.data.processing import PromptProcessing
from zppo_jax.data.progress import Progress
from zppo_jax.data.reading import Reading, Room
from zppo_jax.errors import RunError
from zppo_jax.teacher import precompute
from zppo_jax.teacher.precompute import Done
from zppo_jax.teacher.recording import Recording
from zppo_jax.types import Answer, Missed, MissReason

COUNT = 5


class Script:
    """Answers with the seed of the visit, or misses as `misses(question number, visit)` says; remembers what it was
    asked."""

    def __init__(self, misses: Callable[[int, int], MissReason | None] = lambda number, visit: None) -> None:
        self.misses, self.asked = misses, list[tuple[int, int]]()

    def begin(self, step: int) -> None: ...

    def answer(self, items, stream):
        for item in items:
            number = int(item.prompt.question.id.rpartition("-")[2])
            self.asked.append((number, stream.step))
            reason = self.misses(number, stream.step)
            yield item.prompt.uid, Missed(reason) if reason else [Answer(f"visit {stream.step}", "stop")]


@pytest.fixture
def fill(tmp_path, monkeypatch) -> Callable[..., Done]:
    monkeypatch.setattr(precompute, "_BLOCK", 2)
    source = DigitsSource("rules", "train", COUNT)

    def run(teacher: Any, visits: int = 2, num_tokens: int = 100) -> Done:
        process = PromptProcessing(tiny_model.processor(), tiny_model.TEMPLATE)
        recording = Recording(tmp_path / "answers", {"model": "m", "seed": 0, "sampling": {}})
        reading, progress = Reading(source, process, Room(num_tokens, 1000), "skip"), Progress(sys.stderr, Heartbeat())
        try:
            return precompute.fill(recording, teacher, reading, visits, COUNT, 0, progress)
        finally:
            recording.close()

    return run


def test_a_question_that_is_refused_does_not_stop_the_rest(fill):
    """Also when it is alone in its block, as after an interrupted run."""
    refuses = Script(lambda number, visit: "refused" if number == 1 else None)
    assert fill(refuses, visits=1) == Done(COUNT, COUNT - 1, 0)
    assert fill(refuses, visits=1) == Done(COUNT, COUNT - 1, 0) and refuses.asked[COUNT:] == [(1, 1)]


def test_a_teacher_that_is_away_ends_the_command_and_nothing_is_lost(fill):
    with pytest.raises(RunError, match=r"answered none of its last questions \(unavailable\)"):
        fill(Script(lambda number, visit: "unavailable" if number >= 2 else None))
    back = Script()
    assert fill(back) == Done(2 * COUNT, 2 * COUNT, 0)
    assert sorted(back.asked) == sorted({(n, v) for n in range(COUNT) for v in (1, 2)} - {(0, 1), (1, 1)})


def test_the_visit_that_was_missed_is_asked_again(fill):
    """With its seed, and not that of a visit that is recorded."""
    fill(Script(lambda number, visit: "timeout" if (number, visit) == (3, 1) else None))
    again = Script()
    assert fill(again) == Done(2 * COUNT, 2 * COUNT, 0) and again.asked == [(3, 1)]


def test_what_a_run_would_skip_is_not_asked(fill):
    teacher = Script()
    assert fill(teacher, num_tokens=3) == Done(0, 0, 2 * COUNT) and not teacher.asked
