"""The scorer of a run: responses to questions, and answers against each other, many at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from zppo_jax.rewards.function import FunctionPool
from zppo_jax.rewards.pool import Answer, ScoringPool
from zppo_jax.rewards.verdict import Verdict
from zppo_jax.types import Question

_COMPARED_AS = {"anls": "string", "grounding": "string", "clicking": "string"}
"""Types whose rule accepts an answer near the gold, and the type to compare two answers by: near is not the same."""


class Pair(NamedTuple):
    """Two answers to one question, and the type by which they are compared."""

    answer: str
    other: str
    answer_type: str


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Scores with the children of `pool`; `region` is the part of a response that counts (see `rewards.score`).

    With a `function` (`reward.function`) that function scores the responses; answers are compared by the rules.
    """

    pool: ScoringPool
    region: str
    function: FunctionPool | None = None

    def score(self, texts: Sequence[str], questions: Sequence[Question]) -> list[Verdict]:
        """The verdicts on responses to these questions, in order; a question's options go with it."""
        if self.function is not None:
            return self.function.score_many(texts, questions, self.region)
        return self.pool.score_many(
            Answer(text, question.answer, question.answer_type, self.region, question.options)
            for text, question in zip(texts, questions, strict=True)
        )

    def equal(self, pairs: Sequence[Pair]) -> list[bool | None]:
        """Whether the answers of each pair are the same; None if undecided.

        Each serves as the gold in turn, because a rule may not accept the answer of a response as a gold.
        """
        verdicts = self.pool.score_many(
            Answer(rf"\boxed{{{answer}}}", gold, _COMPARED_AS.get(kind, kind), "anywhere")
            for one, other, kind in pairs
            for answer, gold in ((other, one), (one, other))
        )
        both = zip(verdicts[::2], verdicts[1::2], strict=True)
        return [any(v.correct for v in two) or (False if any(v.decided for v in two) else None) for two in both]

    @property
    def reports(self) -> list[str]:
        """A line for each kind of child that was killed, failed or was asked again; nothing if none was."""
        counted = [("comparisons by computer algebra", self.pool.counters, "")]
        if self.function is not None:
            last = f"; the last fault: {self.function.last_fault}" if self.function.last_fault else ""
            counted.append((f"reward.function {self.function.name}", self.function.counters, last))
        return [
            f"{what}: {', '.join(f'{number} {name}' for name, number in counters.items())}{last}"
            for what, counters, last in counted
            if any(counters.values())
        ]

    def close(self) -> None:
        """Ends all children."""
        self.pool.close()
        if self.function is not None:
            self.function.close()
