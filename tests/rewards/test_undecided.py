"""Fault: an outcome that the response causes is decided, one that the machinery or the gold causes is undecided."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest

from zppo_jax.rewards import UNDECIDED, Answer, ScoringPool, Status, Verdict, score
from zppo_jax.rewards import pool as pool_module

# Right, and more than half a second of algebra.
SLOW = Answer(r"\boxed{x(x+y+z+1)^{7}+(x+y+z+1)^{7}(y+z+1)}", "(x+y+z+1)^{8}")


def test_a_verdict_is_decided_unless_machinery_or_gold_is_at_fault() -> None:
    assert {Status.ERROR, Status.NEEDS_JUDGE} == UNDECIDED
    assert [status for status in Status if not Verdict(False, status, "5").decided] == ["error", "needs_judge"]
    assert not Verdict(False, "error", "5").decided  # also where the status is a plain string


def kill_children(pool: ScoringPool) -> None:
    for child in pool._alive:
        os.kill(child.pid, signal.SIGKILL)


def test_right_answers_are_right_after_all_idle_children_were_killed() -> None:
    with ScoringPool(2, 10.0) as pool:
        for visit in range(2):
            items = [Answer(rf"\boxed{{\ln({visit}+{number}x)}}", rf"\ln({number}x+{visit})") for number in range(1, 5)]
            assert [verdict.correct for verdict in pool.score_many(items)] == [True] * 4
            kill_children(pool)
        assert pool.counters["undecided"] == 0
        assert pool.counters["retries"] > 0


@pytest.mark.parametrize("kills", [1, 2])
def test_a_right_answer_whose_child_is_killed_while_it_compares_is_never_wrong(
    kills: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparing = threading.Semaphore(0)
    reply = pool_module.Child._reply

    def announced(child: Any, seconds: float) -> bytes:
        if child.ready:
            comparing.release()
        return reply(child, seconds)

    monkeypatch.setattr(pool_module.Child, "_reply", announced)
    verdicts: list[Verdict] = []
    with ScoringPool(1, 10.0) as pool:
        scoring = threading.Thread(target=lambda: verdicts.extend(pool.score_many([SLOW])))
        scoring.start()
        for _ in range(kills):
            assert comparing.acquire(timeout=30)
            kill_children(pool)
        scoring.join(30)
        assert [verdict.status for verdict in verdicts] == ["ok" if kills == 1 else "error"]
        assert [verdict.correct for verdict in verdicts] == [kills == 1]
        assert pool.counters == {
            "timeouts": 0, "errors": kills - 1, "restarts": kills, "retries": 1, "undecided": kills - 1,
        }  # fmt: skip


# Simulates an answer that makes a real child take memory until there is none.
GREEDY_CHILD = """
import sys
from zppo_jax.rewards import worker
def greedy(gold, answer, real=worker.compare):
    return bytearray(2**33) and "equal" if "z" in answer else real(gold, answer)
worker.compare = greedy
worker.main()
"""


def test_an_answer_that_takes_all_memory_is_wrong_on_a_fresh_child_only() -> None:
    with ScoringPool(1, 10.0) as pool:
        pool._command = [pool._command[0], "-c", GREEDY_CHILD, *pool._command[-2:]]
        pairs = [(r"\ln(1+x)", r"\ln(x+1)"), (r"\ln(1+z)", r"\ln(z+1)"), (r"\ln(2+x)", r"\ln(x+2)")]
        verdicts = pool.score_many(Answer(rf"\boxed{{{answer}}}", gold) for answer, gold in pairs)
        assert [verdict[:2] for verdict in verdicts] == [(True, "ok"), (False, "timeout"), (True, "ok")]
        assert all(verdict.decided for verdict in verdicts)
        # The first child may have been full of earlier comparisons: only the second one proves that the pair is at
        # fault.
        assert pool.counters == {"timeouts": 1, "errors": 0, "restarts": 2, "retries": 1, "undecided": 0}


@pytest.mark.parametrize(
    ("answer", "gold", "answer_type", "options", "status"),
    [
        # The gold cannot be scored: no answer could be right.
        ("5", "five", "numeric", {}, "error"),
        ("5", "5.5", "integer", {}, "error"),
        ("five", "5.5", "counting", {}, "error"),
        ("B", "Oslo", "multiple_choice", {"choices": ["London", "Rome"]}, "error"),
        ("[0,0,9,9]", "[9,0,0,9]", "grounding", {}, "error"),
        ("[5,5]", "here", "clicking", {}, "error"),
        ("3,1", "3,,1", "ordering", {}, "error"),
        ("5+x", "x" + "+1" * 300, "math", {}, "error"),
        ("5", "5" * 513, "math", {}, "error"),
        ("5+x", "10^{10^{10^{10}}}", "math", {}, "error"),
        ("5+x", r"A \cap B", "math", {}, "error"),
        ("it rains", "because it rains", "free_form", {}, "needs_judge"),
        # The answer is at fault, whatever the gold needs.
        ("five", "5", "numeric", {}, "malformed"),
        ("Oslo", "B", "multiple_choice", {"choices": ["London", "Rome"]}, "malformed"),
        ("[9,0,0,9]", "[0,0,9,9]", "grounding", {}, "malformed"),
        ("3,,1", "3,1", "ordering", {}, "malformed"),
        ("y" * 513, "x", "string", {}, "too_long"),
        ("y" * 513, "because it rains", "free_form", {}, "too_long"),
        ("10^{10^{10^{10}}}", "x+5", "math", {}, "malformed"),
        (r"A \cap B", "x+5", "math", {}, "malformed"),
        ("z", ["x" * 513, "y"], "list_any", {}, "ok"),
        ("x" * 500, "x" * 513, "string", {}, "ok"),
        ("x", ["x" * 513, "y" * 513], "list_any", {}, "ok"),
        ("y" + "+1" * 300, "x", "math", {}, "too_long"),
    ],
)
def test_who_is_at_fault_decides(
    answer: str, gold: Any, answer_type: str, options: dict[str, Any], status: str
) -> None:
    verdict = score(rf"\boxed{{{answer}}}", gold, answer_type, **options)
    assert verdict == (False, status, answer)
    assert verdict.decided == (status not in ("error", "needs_judge"))


def test_a_free_form_answer_equal_to_its_gold_needs_no_judge() -> None:
    assert score(r"\boxed{It rains.}", "it rains", "free_form") == (True, "ok", "It rains.")
