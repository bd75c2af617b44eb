"""How the responses of an evaluation are drawn: every setting arrives, and training neither sees it nor pays for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import pytest

from tests import runs
from tests.test_setup import Names
from zppo_jax import compilation, setup
from zppo_jax.errors import ConfigError
from zppo_jax.evaluate import evaluate
from zppo_jax.keys import RandomStream
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.requests import Request
from zppo_jax.rollout.sample import sample

pytestmark = pytest.mark.usefixtures("quick_compilation")

PENALTIES: dict[str, Any] = {"eval__presence_penalty": -50.0, "eval__repetition_penalty": 3.0}
"""A model that is sure of what it says never repeats itself: a reward for that moves it, a penalty would not."""

Build = Callable[..., tuple[setup.Job, Any]]


@pytest.fixture(scope="module")
def build(start, quick_compilation) -> Iterator[Build]:
    """Jobs with the half-taught student, and its parameters; what samples is compiled, the update is not."""
    with compilation.compiler() as compiler:
        jobs: list[setup.Job] = []

        def make(**changes: Any) -> tuple[setup.Job, Any]:
            job, state = setup.build(runs.config(start, "grpo", **changes), start, start, cast(Any, Names()))
            jobs.append(job)
            engine = dataclasses.replace(job.evaluator.engine, compiler=compiler)
            return dataclasses.replace(job, evaluator=dataclasses.replace(job.evaluator, engine=engine)), state[
                "params"
            ]

        yield make
        for job in jobs:
            job.close()


def answers(job: setup.Job, params: Any) -> list[list[int]]:
    """Tokens of the responses of an evaluation."""
    groups = job.evaluator.answer(params, job.held_out, 1, job.evaluation, RandomStream(0, 0, "evaluate"))
    return [group.rollouts[0].token_ids_T.tolist() for group in groups]


def test_every_setting_arrives(start):
    changes = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.1}
    changes |= {"presence_penalty": 1.5, "repetition_penalty": 1.2}
    config = runs.config(start, **{f"eval__{name}": value for name, value in changes.items()})
    assert dataclasses.asdict(setup.evaluation_sampling(config)) == changes
    assert setup.evaluation_sampling(runs.config(start)) == Sampling(temperature=0.0), (
        "as it was before there were keys"
    )


def test_the_likeliest_token_alone_is_greedy(build):
    greedy, params = build()
    narrow, _ = build(eval__temperature=1.0, eval__top_k=1)
    wide, _ = build(eval__temperature=1.0)
    assert answers(narrow, params) == answers(greedy, params) != answers(wide, params)
    results = [
        evaluate(job.evaluator, params, job.held_out, job.evaluation, seed=0, step=0) for job in (greedy, narrow)
    ]
    assert results[0] == results[1]


def test_penalties_are_those_of_the_engine(build):
    """The same as an engine that is asked directly, and not the same as without them."""
    plain, params = build()
    job, _ = build(**PENALTIES)
    engine = dataclasses.replace(plain.student.engine, penalises=True, compiler=job.evaluator.engine.compiler)
    chosen = Sampling(0.0, repetition_penalty=3.0, presence_penalty=-50.0)
    draw = RandomStream(0, 0, "evaluate")
    direct = sample(engine, params, [Request(one.prompt.uid, one.features, 1, chosen, draw) for one in job.held_out])
    said = answers(job, params)
    assert said == [samples[0].token_ids_T.tolist() for samples in direct]
    assert said != answers(plain, params)
    assert all(set(tokens) == {tokens[0]} for tokens in said), "what has been said once"


def test_training_has_the_programs_it_had(start):
    """One engine without penalties; with them a second that shares what does not depend on the slots."""
    asked, engines = [], []
    for changes in ({}, PENALTIES):
        names = Names()
        job, _ = setup.build(runs.config(start, "grpo", **changes), start, start, cast(Any, names))
        asked.append(names.asked)
        engines.append((job.student.engine, job.evaluator.engine))
        job.close()
    assert engines[0][0] is engines[0][1]
    student, evaluator = engines[1]
    assert not student.penalises and evaluator.penalises
    assert evaluator.kept is student.kept
    more = ["penalised fill of 42 keys after 32 tokens", "penalised decode over 42 keys"]
    assert [name for name in asked[1] if "penalised" in name] == more and set(asked[1]) == {*asked[0], *more}


def test_a_run_trains_the_same_whatever_its_evaluation(start, straight, tmp_path):
    """Rows and samples equal to the bit, but for those of the evaluation; a step after the first compiles nothing."""
    with runs.compilations() as compiled:
        seen: list[int] = []
        with runs.after_row(lambda step: seen.append(len(compiled))):
            runs.run(start, tmp_path / "run", eval__temperature=0.6, eval__top_k=20, eval__min_p=0.01, **PENALTIES)
    assert seen[1] == seen[-1], compiled[seen[1] :]
    assert (tmp_path / "run" / "samples.jsonl").read_bytes() == (straight / "samples.jsonl").read_bytes()
    for row, other in zip(runs.metrics(tmp_path / "run"), runs.metrics(straight), strict=True):
        names = [
            name for name in row if not name.startswith(("eval/", "time/", "memory/")) and "per_second" not in name
        ]
        assert {name: row[name] for name in names} == {name: other[name] for name in names}


def test_another_evaluation_does_not_continue_a_run(start, straight):
    with pytest.raises(ConfigError, match=r"eval.top_k \(was 0, now 20\)"):
        runs.run(start, straight, eval__top_k=20)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("top_p", 0.0), ("top_p", 1.01), ("top_k", -1), ("min_p", 1.0), ("min_p", -0.1)),
        *(("presence_penalty", 101.0), ("repetition_penalty", 0.0), ("repetition_penalty", np.inf)),
    ],
)
def test_what_no_sampler_does_is_refused(start, name, value):
    with pytest.raises(ValueError, match=f"eval.{name} = .* (out of range|not finite)"):
        runs.config(start, **{f"eval__{name}": value})
