"""The verdicts on responses: by the rules, and by the judge where the rules leave a response open."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from zppo_jax.judge import Case, Judge, case_of, left_open, ruled
from zppo_jax.rewards.scorer import Scorer
from zppo_jax.rewards.verdict import Verdict
from zppo_jax.types import Question


@dataclasses.dataclass(frozen=True)
class Scoring:
    """Scores responses in two parts: `rules` may run beside the sampling, `rulings` when all responses are there.

    Without a `judge`, what only a judge can decide is undecided.
    """

    scorer: Scorer
    judge: Judge | None = None

    def rules(self, texts: Sequence[str], questions: Sequence[Question]) -> list[Verdict]:
        """The verdicts of the rules, in order; what the judge must decide is on its way to it afterwards."""
        verdicts = self.scorer.score(texts, questions)
        if self.judge is not None:
            self.judge.ahead([case for case in self._cases(texts, questions, verdicts) if case is not None])
        return verdicts

    def rulings(
        self,
        texts: Sequence[str],
        questions: Sequence[Question],
        verdicts: Sequence[Verdict],
        report: Callable[[str], None] | None = None,
    ) -> list[Verdict]:
        """The same verdicts, with those of the judge on what the rules leave open; waits for it."""
        if self.judge is None:
            return list(verdicts)
        cases = self._cases(texts, questions, verdicts)
        rulings = iter(self.judge.decide([case for case in cases if case is not None], report))
        return [
            verdict if case is None else ruled(verdict.answer, next(rulings))
            for verdict, case in zip(verdicts, cases, strict=True)
        ]

    def _cases(
        self, texts: Sequence[str], questions: Sequence[Question], verdicts: Sequence[Verdict]
    ) -> list[Case | None]:
        """What the judge must decide of each response; None if it need not."""
        return [
            case_of(text, question, self.scorer.region) if left_open(question, verdict) else None
            for text, question, verdict in zip(texts, questions, verdicts, strict=True)
        ]
