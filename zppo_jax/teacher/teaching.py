"""The teacher of a run as the method uses it: its answers scored like the student's, and what it missed counted."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from zppo_jax.actors.scoring import Scoring
from zppo_jax.data.processing import EncodedPrompt
from zppo_jax.keys import RandomStream
from zppo_jax.rewards.verdict import Verdict
from zppo_jax.teacher.teacher import Teacher
from zppo_jax.types import MISS_REASONS, Answer, Missed


@dataclasses.dataclass(frozen=True)
class ScoredText:
    """A scored response without tokens; `types.Rollout` explains the fields."""

    text: str
    correct: bool
    answer: str | None
    status: str
    decided: bool


class Teaching:
    """Asks `teacher`, and scores what it answers while other answers come in.

    `report` gets a line about the progress; an exception in it ends the waiting. `say` tells the user, once a step, why
    the first question or text was missed.
    """

    def __init__(
        self,
        teacher: Teacher,
        scoring: Scoring,
        say: Callable[[str], None],
        report: Callable[[str], None] | None = None,
    ) -> None:
        self.teacher, self._scoring, self._say, self._report = teacher, scoring, say, report
        self._counts: collections.Counter[str] = collections.Counter()
        self._said: set[str] = set()

    def begin(self, step: int) -> None:
        """Begins a step: counts from zero."""
        self._counts.clear()
        self._said.clear()
        self.teacher.begin(step)

    @property
    def works_beside(self) -> bool:
        """Whether questions are worth announcing; see Teacher."""
        return self.teacher.works_beside

    def ahead(self, items: Sequence[EncodedPrompt], stream: RandomStream) -> None:
        """Announces prompts that `answer` will be asked; see Teacher."""
        self.teacher.ahead(items, stream)

    def answer(self, items: Sequence[EncodedPrompt], stream: RandomStream) -> Mapping[str, Sequence[ScoredText]]:
        """Scored answers by the uid of the prompt; a prompt that was missed has none."""
        by_uid, scored = {item.prompt.uid: item for item in items}, list[tuple[str, Sequence[Answer], Future]]()
        self._counts["asked"] += len(items)
        with ThreadPoolExecutor(1, thread_name_prefix="scoring") as beside:
            for uid, got in self.teacher.answer(items, stream):
                if isinstance(got, Missed):
                    self._miss("unanswered", got)
                else:
                    texts = [one.text for one in got]
                    questions = [by_uid[uid].prompt.question] * len(texts)
                    scored.append((uid, got, beside.submit(self._scoring.rules, texts, questions)))
        return self._ruled(by_uid, {uid: (answers, future.result()) for uid, answers, future in scored})

    def _ruled(
        self, by_uid: Mapping[str, EncodedPrompt], scored: Mapping[str, tuple[Sequence[Answer], list[Verdict]]]
    ) -> dict[str, list[ScoredText]]:
        """The answers with the verdicts of rules and judge, in the order of the prompts."""
        places = [(uid, number) for uid in by_uid if uid in scored for number in range(len(scored[uid][0]))]
        texts = [scored[uid][0][number].text for uid, number in places]
        questions = [by_uid[uid].prompt.question for uid, _ in places]
        verdicts = [scored[uid][1][number] for uid, number in places]
        found: dict[str, list[ScoredText]] = {uid: [] for uid in by_uid if uid in scored}
        ruled = self._scoring.rulings(texts, questions, verdicts, self._report)
        for (uid, _), text, one in zip(places, texts, ruled, strict=True):
            found[uid].append(ScoredText(text, one.correct, one.answer, str(one.status), one.decided))
        return found

    def write(self, asks: Sequence[str], stream: RandomStream) -> Sequence[str | Missed]:
        """A short text for each turn, or why there is none."""
        outputs = self.teacher.write(asks, stream)
        for got in outputs:
            if isinstance(got, Missed):
                self._miss("unwritten", got)
        return outputs

    def _miss(self, what: str, missed: Missed) -> None:
        self._counts[what] += 1
        self._counts[f"{what}/{missed.reason}"] += 1
        if what not in self._said and missed.reason != "too_long":
            self._said.add(what)
            detail = f" ({missed.detail})" if missed.detail else ""
            self._say(f"!! the teacher left a {_WORDS[what]}: {missed.reason}{detail}; the step goes on without")

    def counts(self) -> dict[str, int]:
        """The counts of the step, under the same names in every step."""
        names = ("asked", *(name for what in _WORDS for name in (what, *(f"{what}/{one}" for one in MISS_REASONS))))
        return {name: self._counts[name] for name in names}

    def name_hosts(self, parts: Sequence[Mapping[str, int]]) -> None:
        """Tells the user which hosts beside the first missed what; `parts` are the counts of all hosts in a step. Only
        the first host has a console."""
        for host, counts in enumerate(parts):
            reasons = [f"{one} {counts[f'unanswered/{one}']}" for one in MISS_REASONS if counts[f"unanswered/{one}"]]
            if host and reasons:
                self._say(f"!! the teacher of host {host} left questions unanswered: {', '.join(reasons)}")

    def close(self) -> None:
        self.teacher.close()


_WORDS = {"unanswered": "question unanswered", "unwritten": "text unwritten"}
