"""Rewards of the user's own: values, faults and limits of a function in its own process."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from zppo_jax.rewards import FunctionPool, ScoringPool
from zppo_jax.rewards import pool as pool_module
from zppo_jax.rewards.scorer import Scorer
from zppo_jax.types import Question

MODULE = """
import json, os, time

NOT_A_FUNCTION = 5

def reward(response, question):
    if response == "raise": raise ValueError("no such thing")
    if response == "burn":
        while True: pass
    if response == "fill": return bool(bytearray(2**33))
    if response == "sleep": time.sleep(60)
    if response == "die": os._exit(3)
    if response == "exit": raise SystemExit
    if response == "half": return 0.5
    if response == "none": return None
    if response == "print": print("noise on the pipe"); return 1.0
    if response == "fields":
        return [question.id, question.text, question.answer, question.answer_type, question.options["tolerance"],
                question.metadata["box"]] == ["q", "What?", "5", "numeric", 0.1, [1, 2]]
    if response == "frozen":
        try: question.answer = "6"
        except AttributeError: return True
    return question.answer in response
"""


def question(**changes: object) -> Question:
    values = {"id": "q", "text": "What?", "images": [], "answer": "5", "answer_type": "numeric"}
    return Question(**values | {"options": {"tolerance": 0.1}, "metadata": {"box": np.asarray([1, 2])}} | changes)  # type: ignore[arg-type]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_rewards.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)  # importable from the folder of the command, as in the parent
    return "own_rewards:reward"


def verdicts(pool: FunctionPool, *texts: str) -> list[tuple[bool, str]]:
    return [one[:2] for one in pool.score_many(texts, [question()] * len(texts), "final")]


def test_the_function_decides(own: str) -> None:
    with FunctionPool(own, 1, 5.0) as pool:
        pool.check()
        found = verdicts(pool, r"so \boxed{5}", "6", "fields", "frozen", "print", "5" * 500_000)
        assert found == [(True, "ok"), (False, "ok"), *[(True, "ok")] * 4]
        assert pool.score_many([r"so \boxed{5}"], [question()], "final")[0].answer == "5"
        assert not any(pool.counters.values())


def test_a_fault_of_the_function_is_undecided_and_named(own: str) -> None:
    with FunctionPool(own, 1, 5.0) as pool:
        for text, fault in (("raise", "ValueError: no such thing"), ("half", "0.5: return"), ("none", "None: return")):
            assert verdicts(pool, text, "5") == [(False, "error"), (True, "ok")]
            assert fault in pool.last_fault
        assert not pool.score_many(["raise"], [question()], "final")[0].decided
        assert pool.counters == {"timeouts": 0, "errors": 4, "restarts": 0, "retries": 0, "undecided": 4}


def test_a_death_is_tried_again_once_and_undecided(own: str) -> None:
    with FunctionPool(own, 1, 5.0) as pool:
        assert verdicts(pool, "5", "die", "exit", "5") == [
            *((True, "ok"), (False, "error"), (False, "error"), (True, "ok")),
        ]
        assert pool.counters == {"timeouts": 0, "errors": 2, "restarts": 4, "retries": 2, "undecided": 2}


def test_what_uses_up_its_limit_is_wrong_and_costs_nothing_else(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with FunctionPool(own, 1, 0.5) as pool:
        assert verdicts(pool, "burn", "5", "fill", "5") == [(False, "timeout"), (True, "ok")] * 2
        assert pool.counters["timeouts"] == 2
        monkeypatch.setattr(pool_module, "_WALL_FACTOR", 0.3)
        assert verdicts(pool, "sleep") == [(False, "error")]  # nobody's processor time: undecided


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("own_rewards", "package.module:name"),
        ("own_rewards:reward()", "package.module:name"),
        ("no_such_module:reward", "no_such_module"),
        ("own_rewards:nothing", "nothing"),
        ("own_rewards:NOT_A_FUNCTION", "no function"),
    ],
)
def test_a_function_that_cannot_be_used_is_refused_at_the_start(own: str, name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        FunctionPool(name).check()


def test_a_scorer_uses_the_function_for_responses_and_the_rules_between_answers(own: str) -> None:
    scorer = Scorer(ScoringPool(1), "final", FunctionPool(own, 1, 5.0))
    try:
        assert [one.correct for one in scorer.score(["it is 5", "raise"], [question()] * 2)] == [True, False]
        assert scorer.equal([("0.5", r"\frac12", "math")]) == [True]  # type: ignore[list-item]
        assert len(scorer.reports) == 1 and "ValueError: no such thing" in scorer.reports[0]
    finally:
        scorer.close()


def test_the_example_of_the_documentation_scores() -> None:
    with FunctionPool("experiments.own_reward.rewards:brief", 1, 20.0) as pool:
        assert os.path.exists("experiments/own_reward/rewards.py")
        asked = [question(), question(), question(metadata={"max_characters": 5})]
        found = pool.score_many([r"\boxed{5.2}", r"\boxed{6}", r"\boxed{5}"], asked, "final")
        assert [one[:2] for one in found] == [(True, "ok"), (False, "ok"), (False, "ok")]
