"""An actor answers prompts: rollouts from the engine, text from the processor, verdicts from the scorer.

The same way serves the student, the teacher and the evaluation; only parameters and settings differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from zppo_jax.data.pipeline import Item
from zppo_jax.processor import Processor
from zppo_jax.rewards import Item as ScoringItem
from zppo_jax.rewards import ScoringPool
from zppo_jax.rollout.engine import Engine
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.requests import Draw, Request, Sample
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
        samples = self.engine.sample(params, requests)
        texts = [[self.text_of(one) for one in group] for group in samples]
        verdicts = iter(
            self.scorer.score_many(
                ScoringItem(text, item.prompt.question.answer, item.prompt.question.answer_type, self.region)
                for item, group in zip(items, texts, strict=True)
                for text in group
            )
        )
        groups = []
        for item, group, responses in zip(items, samples, texts, strict=True):
            rollouts = tuple(
                Rollout(one.token_ids_T, one.logprobs_T, one.finish_reason, text, *_verdict(next(verdicts)))
                for one, text in zip(group, responses, strict=True)
            )
            groups.append(Group(item.prompt, item.features, rollouts))
        return groups

    def text_of(self, sample: Sample) -> str:
        """The whole response: the prefilled part of the generation prompt and the decoded tokens."""
        return self.processor.response_prefix + self.processor.decode(sample.token_ids_T)


def _verdict(verdict: Any) -> tuple[bool, str | None, str]:
    return verdict.correct, verdict.answer, str(verdict.status)
