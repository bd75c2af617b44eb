"""An actor answers prompts: rollouts from the engine, text from the processor, verdicts from the scorer.

The same way serves the student, the teacher and the evaluation; only parameters and settings differ. Responses are
decoded to text and scored as they finish, beside the sampling; the groups do not depend on when which was ready.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from zppo_jax.data.pipeline import Item
from zppo_jax.processor import Processor
from zppo_jax.rewards import Item as ScoringItem
from zppo_jax.rewards import ScoringPool
from zppo_jax.rewards.verdict import Verdict
from zppo_jax.rollout.engine import Engine
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.requests import Draw, Request, Sample
from zppo_jax.rollout.session import Finished
from zppo_jax.types import Group, Rollout


@dataclasses.dataclass(frozen=True)
class Actor:
    """What turns prompts into scored groups; `region` says where an answer counts."""

    engine: Engine
    processor: Processor
    scorer: ScoringPool
    region: str

    def answer(
        self,
        params: dict[str, Any],
        items: Sequence[Item],
        num_samples: int,
        sampling: Sampling,
        draw: Draw,
    ) -> list[Group]:
        """One group of `num_samples` scored rollouts for each prompt, in order."""
        requests = [
            Request(item.prompt.uid, item.features, num_samples, sampling, draw, vision_key=item.prompt.question.id)
            for item in items
        ]
        scored: list[Future[dict[tuple[int, int], Rollout]]] = []
        with ThreadPoolExecutor(1, thread_name_prefix="scoring") as beside:
            for finished in self.engine.stream(params, requests):
                if finished:
                    scored.append(beside.submit(self._scored, items, finished))
        rollouts = {place: rollout for part in scored for place, rollout in part.result().items()}
        return [
            Group(item.prompt, item.features, tuple(rollouts[index, number] for number in range(num_samples)))
            for index, item in enumerate(items)
        ]

    def _scored(self, items: Sequence[Item], finished: Finished) -> dict[tuple[int, int], Rollout]:
        """The rollouts of what has finished, by request and number of the sample."""
        texts = [self.text_of(sample) for _, _, sample in finished]
        questions = [items[index].prompt.question for index, _, _ in finished]
        verdicts = self.scorer.score_many(
            ScoringItem(text, question.answer, question.answer_type, self.region)
            for text, question in zip(texts, questions, strict=True)
        )
        return {
            (index, number): Rollout(one.token_ids_T, one.logprobs_T, one.finish_reason, text, *_verdict(verdict))
            for (index, number, one), text, verdict in zip(finished, texts, verdicts, strict=True)
        }

    def text_of(self, sample: Sample) -> str:
        """The whole response: the prefilled part of the generation prompt and the decoded tokens."""
        return self.processor.response_prefix + self.processor.decode(sample.token_ids_T)


def _verdict(verdict: Verdict) -> tuple[bool, str | None, str, bool]:
    return verdict.correct, verdict.answer, str(verdict.status), verdict.decided
