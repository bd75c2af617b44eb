"""The scorer of a run: responses to questions, and answers against each other, many at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

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
    """Scores with the children of `pool`; `region` is the part of a response that counts (see `rewards.score`)."""

    pool: ScoringPool
    region: str

    def score(self, texts: Sequence[str], questions: Sequence[Question]) -> list[Verdict]:
        """The verdicts on responses to these questions, in order; a question's options go with it."""
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

    def close(self) -> None:
        """Ends the children of the pool."""
        self.pool.close()
