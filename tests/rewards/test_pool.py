"""The pool: order, cache, replacement of children that hang or die, and actions forbidden to children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from zppo_jax import children
from zppo_jax.rewards import Answer, ScoringPool
from zppo_jax.rewards import pool as pool_module

BOMB = r"\boxed{(x+y+z+1)^{400}}"

# Replaces the real child: its behaviour depends on the gold.
FAKE_CHILD = """
import json, os, sys, time
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    gold, answer = json.loads(line)
    if "d" in answer: os._exit(3)
    if "s" in answer: time.sleep(60)
    if "c" in answer: print(json.dumps("malformed"), flush=True); continue
    print(json.dumps("equal" if "q" in answer else "different"), flush=True)
"""


def counters(**counts: int) -> dict[str, int]:
    """All counters: the given ones, and 0 for the others."""
    return {"timeouts": 0, "errors": 0, "restarts": 0, "retries": 0, "undecided": 0} | counts


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScoringPool]:
    monkeypatch.setattr(pool_module, "_WALL_FACTOR", 0.3)
    with ScoringPool(1, timeout_seconds=0.1) as pool:
        pool._command = [sys.executable, "-c", FAKE_CHILD]
        yield pool


def boxed(answer: str) -> Answer:
    """An answer that only a child can compare."""
    return Answer(rf"\boxed{{\ln({answer})}}", r"\ln(x+1)")


def test_verdicts_come_in_the_order_of_the_items() -> None:
    answers = ["x+1", "1+x", "x+2", "nothing", "2x/2+1", "3"]
    with ScoringPool(2) as pool:
        verdicts = pool.score_many([boxed(answer) for answer in answers])
        assert [verdict.correct for verdict in verdicts] == [True, True, False, False, True, False]
        assert [verdict.answer for verdict in verdicts] == [rf"\ln({answer})" for answer in answers]
        assert pool.score_many([]) == []
        assert pool.score_many([(r"\boxed{5}", "5", "integer")])[0].correct


def test_a_bomb_costs_its_own_verdict_only() -> None:
    with ScoringPool(1, timeout_seconds=0.5) as pool:
        verdicts = pool.score_many([boxed("1+x"), Answer(BOMB, "x+1"), boxed("x+1+0x")])
        assert [verdict.status for verdict in verdicts] == ["ok", "timeout", "ok"]
        assert [verdict.correct for verdict in verdicts] == [True, False, True]
        assert [verdict.decided for verdict in verdicts] == [True] * 3
        assert pool.counters == counters(timeouts=1, restarts=1)


def test_processor_time_ends_a_bomb_whatever_the_wall_clock_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_WALL_FACTOR", 200.0)
    with ScoringPool(1, timeout_seconds=0.1) as pool:
        killed: list[int] = []
        monkeypatch.setattr(pool_module.Child, "reap", _recording(pool_module.Child.reap, killed))
        for _ in range(2):  # the second time it is cached: the same answer would use up its limit again
            assert pool.score(BOMB, "x+1") == (False, "timeout", "(x+y+z+1)^{400}")
        assert killed[0] == -signal.SIGXCPU
        assert pool.counters == counters(timeouts=1, restarts=1)


def _recording(reap: Callable[..., int], codes: list[int]) -> Callable[..., int]:
    def recorded(worker: object, grace_seconds: float = 0.0) -> int:
        codes.append(reap(worker, grace_seconds))
        return codes[-1]

    return recorded


def test_answers_of_other_types_start_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children.subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    with ScoringPool(2) as pool:
        items = [
            Answer(r"\boxed{a}", "b", "string"),
            Answer(r"\boxed{3/6}", "0.5"),
            Answer(r"\boxed{a cat}", "x^2"),
            Answer("", "5"),
        ]
        assert [verdict.correct for verdict in pool.score_many(items)] == [False, True, False, False]


def test_a_pair_that_kills_two_children_is_undecided_and_the_others_are_not(fake: ScoringPool) -> None:
    verdicts = fake.score_many([boxed(answer) for answer in ("x+q", "x+d", "x+q+2", "x+3")])
    assert [verdict.status for verdict in verdicts] == ["ok", "error", "ok", "ok"]
    assert [verdict.correct for verdict in verdicts] == [True, False, True, False]
    assert [verdict.decided for verdict in verdicts] == [True, False, True, True]
    assert fake.counters == counters(errors=1, restarts=2, retries=1, undecided=1)


def test_a_child_that_stands_still_is_undecided_since_it_used_up_nothing(fake: ScoringPool) -> None:
    verdicts = fake.score_many([boxed("x+s"), boxed("x+q")])
    assert [verdict.status for verdict in verdicts] == ["error", "ok"]
    assert [verdict.decided for verdict in verdicts] == [False, True]
    assert fake.counters == counters(errors=1, restarts=2, retries=1, undecided=1)


def test_an_answer_that_cannot_be_compared_is_wrong_and_the_child_lives_on(fake: ScoringPool) -> None:
    verdicts = fake.score_many([boxed("x+c"), boxed("x+q")])
    assert [verdict.status for verdict in verdicts] == ["malformed", "ok"]
    assert all(verdict.decided for verdict in verdicts)
    assert fake.counters == counters()


def test_without_a_child_everything_is_undecided_after_one_more_try() -> None:
    with ScoringPool(1) as pool:
        pool._command = [sys.executable, "-c", "raise SystemExit(1)"]
        verdicts = pool.score_many([boxed("x+2"), boxed("x+3")])
        pool._command = ["/nonexistent/python"]
        verdicts += pool.score_many([boxed("x+4")])
        assert [verdict.status for verdict in verdicts] == ["error"] * 3
        assert pool.counters == counters(errors=3, restarts=2, retries=2, undecided=3)


def test_equal_pairs_are_compared_once_and_failures_are_not_remembered(
    fake: ScoringPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gold = r"\ln(x+1)"
    asked: list[tuple[str, str]] = []
    ask = pool_module.Child.ask
    monkeypatch.setattr(
        pool_module.Child, "ask", lambda child, pairs, seconds: (asked.extend(pairs), ask(child, pairs, seconds))[1]
    )
    for _ in range(2):
        verdicts = fake.score_many([boxed("x+q")] * 5 + [boxed("x+d")])
        assert [verdict.correct for verdict in verdicts] == [True] * 5 + [False]
    # The pair whose child died is asked twice each time: once more on a fresh child.
    assert asked == [(gold, r"\ln(x+q)"), *[(gold, r"\ln(x+d)")] * 4]


def test_a_child_is_replaced_after_max_tasks(fake: ScoringPool) -> None:
    fake.max_tasks = 2
    fake.score_many([boxed(f"x+{number}") for number in range(2, 7)])
    assert fake.counters == counters(restarts=2)


def test_many_threads_may_score_at_once() -> None:
    with ScoringPool(2) as pool, ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(pool.score, rf"\boxed{{\ln({k}+x)}}", rf"\ln(x+{k % 5})") for k in range(40)]
        assert [future.result().correct for future in futures] == [k < 5 for k in range(40)]
        assert pool.counters == counters()


def test_close_ends_comparisons_and_leaves_no_process(fake: ScoringPool) -> None:
    fake.timeout_seconds = 30.0
    verdicts = []
    started = threading.Event()
    begin = fake._start
    fake._start = lambda: (begin(), started.set())[0]
    thread = threading.Thread(target=lambda: verdicts.extend(fake.score_many([boxed("x+s"), boxed("x+s+1")])))
    thread.start()
    assert started.wait(10)
    (child,) = fake._alive
    fake.close()
    thread.join(10)
    fake.close()
    assert [verdict.status for verdict in verdicts] == ["error", "error"]
    assert not fake._alive
    with pytest.raises(ChildProcessError):  # reaped: no zombie is left to wait for
        os.waitpid(child._process.pid, os.WNOHANG)
    with pytest.raises(ValueError, match="closed"):
        fake.score_many([boxed("x+q")])


@pytest.mark.parametrize("name", ["num_workers", "timeout_seconds", "max_tasks"])
def test_sizes_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        ScoringPool(**{name: 0})


# No __main__ guard, on purpose: scoring must work from any script, and its children must not run it again.
SCRIPT = r"""
import os, sys, threading
print("main ran")
from zppo_jax.rewards import score
assert score(r"\boxed{\ln(1+x)}", r"\ln(x+1)").correct
assert "jax" not in sys.modules
from zppo_jax.rewards.score import default_pool
(worker,) = default_pool()._alive
print("child", worker._process.pid)
maps = open(f"/proc/{worker._process.pid}/maps").read() if os.path.exists("/proc") else ""
assert "jaxlib" not in maps
limits = open(f"/proc/{worker._process.pid}/limits").read() if os.path.exists("/proc") else ""
assert not limits or str(1024 * 2**20) in limits
forked = os.fork()
if forked == 0:
    os._exit(0 if score(r"\boxed{\ln(2+x)}", r"\ln(x+2)").correct else 1)
assert os.waitpid(forked, 0)[1] == 0
assert score(r"\boxed{\ln(3+x)}", r"\ln(x+3)").correct
"""


def test_a_script_without_a_guard_and_without_a_backend_can_score(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # A folder on the path must not shadow the child's imports.
    (tmp_path / "sympy.py").write_text("raise SystemExit('shadowed')")
    environment = os.environ | {
        "JAX_PLATFORMS": "nonexistent",
        "PYTHONPATH": str(Path(pool_module.__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("main ran") == 1
    child = int(done.stdout.split()[-1])
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
