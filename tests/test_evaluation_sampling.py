"""The sampling of an evaluation: every setting is applied, and training is neither changed nor slowed by it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import numpy as np
import pytest

from tests import runs
from tests.test_setup import Names
from zppo_jax import compilation, setup
from zppo_jax.data.processing import EncodedPrompt
from zppo_jax.errors import ConfigError
from zppo_jax.evaluate import HeldOut, heldout, metrics
from zppo_jax.keys import RandomStream
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.requests import Request
from zppo_jax.rollout.sample import sample

PENALTIES: dict[str, Any] = {"eval__presence_penalty": -50.0, "eval__repetition_penalty": 3.0}
"""A confident model never repeats itself, so a penalty would not change it: a negative penalty, a reward, does."""

Build = Callable[..., tuple[HeldOut, Any]]


def held_out_of(parts: setup.Components) -> HeldOut:
    (evaluator,) = parts.evaluators
    assert isinstance(evaluator, HeldOut)
    return evaluator


@pytest.fixture(scope="module")
def build(start) -> Iterator[Build]:
    """Evaluations of the half-taught student, and its parameters; only the sampling programs are compiled."""
    with compilation.compiler() as compiler:
        made: list[setup.Components] = []

        def make(**changes: Any) -> tuple[HeldOut, Any]:
            parts, state = setup.build(runs.config(start, "grpo", **changes), start, start, cast(Any, Names()))
            made.append(parts)
            evaluator = held_out_of(parts)
            engine = dataclasses.replace(evaluator.actor.engine, compiler=compiler)
            actor = dataclasses.replace(evaluator.actor, engine=engine)
            return dataclasses.replace(evaluator, actor=actor), state["params"]

        yield make
        for parts in made:
            parts.close()


def prompts_of(evaluator: HeldOut) -> list[EncodedPrompt]:
    return [item for piece in evaluator.encoded() for item in piece]


def answers(evaluator: HeldOut, params: Any, pieces: Iterable[list[EncodedPrompt]] = ()) -> list[list[int]]:
    """Tokens of the responses of an evaluation, all at once or in pieces."""
    stream, said = RandomStream(0, 0, "evaluate"), []
    for items in pieces or [prompts_of(evaluator)]:
        said += evaluator.actor.answer(params, items, 1, evaluator.sampling, stream)
    return [group.rollouts[0].token_ids_T.tolist() for group in said]


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
    results = [dict(evaluator.run(params, 0)) for evaluator in (greedy, narrow)]
    assert results[0] == results[1]


def test_questions_in_pieces_are_answered_like_those_in_one_piece(build, monkeypatch):
    """Drawn from the whole distribution: the responses to a prompt do not depend on the other prompts."""
    evaluator, params = build(eval__temperature=1.0)
    expected, graded = answers(evaluator, params), evaluator.graded(params, 3)
    monkeypatch.setattr(heldout, "PIECE_BYTES", 3 * 32 * 64 * 3)
    evaluator = dataclasses.replace(evaluator)  # the copy has kept no piece
    pieces = list(evaluator.encoded())
    assert len(pieces) > 2 and sum(map(len, pieces)) == 8
    assert answers(evaluator, params, pieces) == expected
    assert evaluator.graded(params, 3) == graded and dict(evaluator.run(params, 3)) == metrics(graded)


def test_penalties_are_those_of_the_engine(build):
    """The same as from a direct call of the engine, and not the same as without penalties."""
    plain, params = build()
    penalised, _ = build(**PENALTIES)
    engine = dataclasses.replace(plain.actor.engine, penalises=True)
    chosen = Sampling(0.0, repetition_penalty=3.0, presence_penalty=-50.0)
    draw = RandomStream(0, 0, "evaluate")
    asked = prompts_of(penalised)
    direct = sample(engine, params, [Request(one.prompt.uid, one.features, 1, chosen, draw) for one in asked])
    said = answers(penalised, params)
    assert said == [samples[0].token_ids_T.tolist() for samples in direct]
    assert said != answers(plain, params)
    assert all(set(tokens) == {tokens[0]} for tokens in said), "what has been said once"


def test_training_has_the_programs_it_had(start):
    """One engine without penalties; with them a second one that shares the programs that do not depend on the slots."""
    asked, engines = [], []
    for changes in ({}, PENALTIES):
        names = Names()
        parts, _ = setup.build(runs.config(start, "grpo", **changes), start, start, cast(Any, names))
        asked.append(names.asked)
        engines.append((parts.student.actor.engine, held_out_of(parts).actor.engine))
        parts.close()
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
