"""A teacher as the method uses it: answers are scored as they come, and every miss is counted and said."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence

import pytest

from tests import tiny_model
from zppo_jax.actors.scoring import Scoring
from zppo_jax.data.processing import EncodedPrompt
from zppo_jax.judge import Judge
from zppo_jax.judge.cache import VerdictCache
from zppo_jax.keys import RandomStream
from zppo_jax.rewards import ScoringPool
from zppo_jax.rewards.scorer import Scorer
from zppo_jax.run.metrics import SCHEMA
from zppo_jax.teacher.teaching import Teaching
from zppo_jax.types import MISS_REASONS, Answer, Missed

STREAM = RandomStream(0, 1, "teacher")


@dataclasses.dataclass
class Script:
    """A teacher with scripted answers, by the question, which come in the order of the script."""

    answers: dict[str, Sequence[str] | Missed]
    texts: Sequence[str | Missed] = ()
    gone: threading.Event = dataclasses.field(default_factory=threading.Event)
    name: str = "script"
    works_beside: bool = True

    def begin(self, step: int) -> None: ...
    def close(self) -> None: ...
    def ahead(self, items: Sequence[EncodedPrompt], stream: RandomStream) -> None: ...

    def answer(
        self, items: Sequence[EncodedPrompt], stream: RandomStream
    ) -> Iterator[tuple[str, Sequence[Answer] | Missed]]:
        uids = {item.prompt.question.id: item.prompt.uid for item in items}
        for question, got in self.answers.items():
            answers = got if isinstance(got, Missed) else [Answer(text, "stop") for text in got]
            yield uids[question], answers

    def write(self, asks: Sequence[str], stream: RandomStream) -> Sequence[str | Missed]:
        return self.texts


@pytest.fixture(scope="module")
def scorer():
    with ScoringPool(1, 10.0) as pool:
        yield Scorer(pool, "final")


def items() -> list[EncodedPrompt]:
    """Questions a, b, c and d, whose answers are 7, 9, ..."""
    return list(tiny_model.items()[:4])


def ids() -> list[str]:
    return [item.prompt.question.id for item in items()]


def test_answers_have_the_verdicts_of_the_students(scorer):
    a, b, c, _ = ids()
    golds = {item.prompt.question.id: item.prompt.question.answer for item in items()}
    right = rf"</think> \boxed{{{golds[a]}}}"
    script = Script({c: ["nothing"], a: [right, "<think>\n thinking for ever"], b: Missed("late")})
    found = Teaching(script, Scoring(scorer), lambda line: None).answer(items()[:3], STREAM)
    uids = [item.prompt.uid for item in items()[:3]]
    assert list(found) == [uids[0], uids[2]], "in the order of the prompts, without the missed one"
    first, second = found[uids[0]]
    assert (first.text, first.correct, first.answer, first.decided) == (right, True, golds[a], True)
    assert (second.correct, second.status) == (False, "no_answer")
    assert [one.correct for one in found[uids[2]]] == [False]


def test_misses_are_counted_by_reason_and_the_first_of_each_kind_is_said(scorer):
    said: list[str] = []
    a, b, c, d = ids()
    misses: dict[str, Sequence[str] | Missed] = {a: Missed("late"), b: Missed("late"), c: Missed("timeout", "5 s")}
    script = Script(misses | {d: ["x"]}, [Missed("too_long"), "y", Missed("refused", "no")])
    teaching = Teaching(script, Scoring(scorer), said.append)
    for step in (1, 2):
        teaching.begin(step)
        teaching.answer(items(), STREAM)
        assert teaching.write(["1", "2", "3"], STREAM)[1] == "y"
        counts = teaching.counts()
        assert {name: count for name, count in counts.items() if count} == {
            **{"asked": 4, "unanswered": 3, "unanswered/late": 2, "unanswered/timeout": 1},
            **{"unwritten": 2, "unwritten/too_long": 1, "unwritten/refused": 1},
        }
        assert (
            said
            == [
                "!! the teacher left a question unanswered: late; the step goes on without",
                "!! the teacher left a text unwritten: refused (no); the step goes on without",
            ]
            * step
        )
    assert {f"teacher/{name}" for name in counts} == {name for name in SCHEMA if name.startswith("teacher/")}
    assert set(MISS_REASONS) == {name.partition("/")[2] for name in counts if name.startswith("unwritten/")}


def test_a_host_whose_teacher_is_away_is_named(scorer):
    """By the first host, which alone has a console; its misses are said when they occur."""
    said: list[str] = []
    teaching = Teaching(Script({}), Scoring(scorer), said.append)
    nothing = teaching.counts()
    away = nothing | {"unanswered": 3, "unanswered/unavailable": 2, "unanswered/late": 1}
    teaching.name_hosts([away, nothing, away])
    assert said == ["!! the teacher of host 2 left questions unanswered: late 1, unavailable 2"]


def test_answers_are_scored_while_others_come_in(scorer):
    """The second answer comes only after the first one is scored."""
    a, b, _, _ = ids()
    scored = threading.Event()

    class Counting(Scoring):
        def rules(self, texts, questions):
            verdicts = super().rules(texts, questions)
            scored.set()
            return verdicts

    class Slow(Script):
        def answer(self, items, stream):
            for one in super().answer(items, stream):
                yield one
                assert scored.wait(30)

    teaching = Teaching(Slow({b: ["x"], a: ["y"]}), Counting(scorer), lambda line: None)
    assert len(teaching.answer(items()[:2], STREAM)) == 2


class Lenient:
    """A judge that finds everything right, at once."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def begin(self) -> None: ...
    def close(self) -> None: ...
    def give_up(self, reason: str) -> None: ...
    def settle(self, futures) -> None: ...

    def submit(self, case):
        from concurrent.futures import Future

        self.asked.append(case.response)
        future: Future[str] = Future()
        future.set_result('{"verdict": "correct"}')
        return future


def test_the_judge_decides_what_the_rules_leave_open(scorer, tmp_path):
    lenient = Lenient()
    judge = Judge(VerdictCache(tmp_path / "verdicts.sqlite", print), "m", 8, 5.0, lenient)  # type: ignore[arg-type]
    judge.begin(1)
    free = [
        dataclasses.replace(
            item,
            prompt=dataclasses.replace(
                item.prompt, question=dataclasses.replace(item.prompt.question, answer_type="free_form")
            ),
        )
        for item in items()[:2]
    ]
    a, b, _, _ = ids()
    script = Script({b: [r"</think> \boxed{snow}"], a: [r"</think> \boxed{rain}", "</think>"]})
    found = Teaching(script, Scoring(scorer, judge), lambda line: None).answer(free, STREAM)
    assert [[one.correct for one in answers] for answers in found.values()] == [[True, False], [True]]
    assert sorted(lenient.asked) == ["rain", "snow"]
    undecided = Teaching(script, Scoring(scorer), lambda line: None).answer(free, STREAM)
    assert not any(one.decided for answers in undecided.values() for one in answers if one.answer)
    judge.close()
