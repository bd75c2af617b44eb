"""The teacher as a judge in this process: really sampled, and with scripted outputs."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import numpy as np
import pytest

from tests import runs, tiny_model
from tests.actors.test_actor import spoken
from tests.judge.conftest import cases
from zppo_jax import setup
from zppo_jax.actors.actor import Actor
from zppo_jax.actors.local_judge import LocalJudge
from zppo_jax.judge import Case, Judge, Ruling, judge_text
from zppo_jax.judge.cache import VerdictCache
from zppo_jax.rollout.kept import Kept
from zppo_jax.rollout.shapes import Shapes
from zppo_jax.teacher.local import LocalTeacher
from zppo_jax.warmstart import tiny


class Script:
    """An engine that answers as `say` says, and remembers its calls."""

    def __init__(self, say, longest: int = 20_000):
        self.say, self.kept, self.calls = say, Kept(), []
        self.shapes, self.report = Shapes((longest,), 0, 8), None

    def stream(self, params, requests):
        texts = [
            tiny.processor().tokenizer.decode(one.features.token_ids_T, skip_special_tokens=False) for one in requests
        ]
        self.calls.append(texts)
        yield [(index, 0, spoken(self.say(text))) for index, text in enumerate(texts)]


def made(tmp_path, script: Script) -> Judge:
    quiet = tiny.processor(enable_thinking=False)
    actor = Actor(cast(Any, script), quiet, cast(Any, None))
    cache = VerdictCache(tmp_path / "v", pytest.fail)
    judge = Judge(cache, "teacher", 8, 1e-9, LocalJudge({}, actor))
    judge.begin(1)
    return judge


def test_all_cases_are_answered_in_one_batch_in_the_order_of_their_texts(tmp_path):
    script = Script(lambda text: '{"verdict": "correct"}' if "number 2" in text else "hm")
    judge = made(tmp_path, script)
    asked = cases(4)
    judge.ahead(asked[2:])
    assert judge.decide([*asked, *asked]) == [Ruling.MALFORMED, Ruling.MALFORMED, Ruling.CORRECT, Ruling.MALFORMED] * 2
    (texts,) = script.calls
    assert len(texts) == 4 and all(judge_text(case) in text for case, text in zip(asked, texts, strict=True))
    assert all(text.endswith("<think>\n\n</think>\n\n") for text in texts), "without thinking"
    assert judge.counts()["failed"] == 0, "a deadline is for endpoints"


def test_of_a_long_response_the_end_is_read_and_a_long_question_is_not_judged(tmp_path):
    frame = tiny.processor().num_tokens(judge_text(Case("", "", "")))
    script = Script(lambda text: '{"verdict": "wrong"}', frame + 300)
    judge = made(tmp_path, script)
    asked = [Case("q", "g", "so " * 2000 + "it is snow"), Case("why " * 2000, "g", "r")]
    assert judge.decide(asked) == [Ruling.WRONG, Ruling.FAILED]
    assert "it is snow\n</response>" in script.calls[0][0] and len(script.calls[0]) == 1
    assert judge.decide([]) == []


def test_a_random_model_judges_and_its_memory_is_given_back(tmp_path):
    """Really sampled: what it writes is no verdict."""
    actor = Actor(
        tiny_model.engine(4, 2, Shapes((2600,), 16, 8)), tiny.processor(enable_thinking=False), cast(Any, None)
    )
    judge = made(tmp_path, Script(str))
    judge.asker = LocalJudge(tiny_model.model().params, actor)
    assert judge.decide(cases(3)) == [Ruling.MALFORMED] * 3
    assert actor.engine.kept.weights._made is None


@pytest.mark.parametrize("method", ["zppo", "grpo"])
def test_the_judge_of_a_configuration(start, tmp_path, method):
    """Every actor has it; its prompts hold the longest question and response; a method without help has a teacher for
    it too."""
    from tests.test_setup import Names

    config = runs.config(start, method, judge__endpoint="teacher", judge__max_tokens=9)
    parts, _ = setup.build(config, start, start, cast(Any, Names()), folder=tmp_path)
    judge = parts.student.actor.judge
    assert judge is not None and parts.teacher is not None
    teacher = cast(LocalTeacher, parts.teacher.teacher)
    assert teacher.actor.judge is judge
    assert cast(Any, parts.evaluators[0]).actor.judge is judge
    local = cast(LocalJudge, judge.asker)
    assert local.params is teacher.params and local.actor.engine.shapes.max_new_tokens == 9
    assert local.actor.engine.kept is not parts.student.actor.engine.kept
    words = np.resize(["so", "it", "is"], 60)
    longest = Case(" ".join(words), "7", "x" * 10)
    assert local.actor.engine.shapes.holds(local.actor.processor.features(judge_text(longest), ()))
    assert (tmp_path / "verdicts.sqlite").exists() and judge.model.startswith("teacher ")
    parts.close()


def test_without_a_judge_nothing_is_made(start, tmp_path):
    from tests.test_setup import Names

    parts, _ = setup.build(runs.config(start, "grpo"), start, start, cast(Any, Names()), folder=tmp_path)
    assert parts.judge is None and parts.teacher is None and not list(tmp_path.iterdir())
    assert parts.asked_metrics() == {}
    parts.begin(1)
    parts.close()
    assert dataclasses.is_dataclass(parts)
