"""An actor answers prompts: rollouts from the engine, text from the processor, verdicts from the scorer.

Student, teacher and evaluation differ only in parameters and settings. Responses are decoded to text and scored as they
finish, while sampling goes on; the groups do not depend on the order in which responses finish.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from zppo_jax.data.processing import EncodedPrompt
from zppo_jax.keys import RandomStream
from zppo_jax.processor import Processor
from zppo_jax.rewards.scorer import Scorer
from zppo_jax.rollout import sample as sampler
from zppo_jax.rollout.engine import Engine
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.requests import Request, Sample
from zppo_jax.rollout.sample import Finished
from zppo_jax.types import Group, Prompt, Rollout


@dataclasses.dataclass(frozen=True)
class Actor:
    """Turns prompts into scored groups."""

    engine: Engine
    processor: Processor
    scorer: Scorer

    def answer(
        self,
        params: dict[str, Any],
        items: Sequence[EncodedPrompt],
        num_samples: int,
        sampling: Sampling,
        stream: RandomStream,
    ) -> list[Group]:
        """Samples one group of `num_samples` scored rollouts for each prompt, in order."""
        requests = [
            Request(item.prompt.uid, item.features, num_samples, sampling, stream, vision_key=item.prompt.question.id)
            for item in items
        ]
        scored: list[Future[dict[tuple[int, int], Rollout]]] = []
        with ThreadPoolExecutor(1, thread_name_prefix="scoring") as beside:
            for finished in sampler.stream(self.engine, params, requests):
                if finished:
                    scored.append(beside.submit(self._score, items, finished))
        rollouts = {place: rollout for part in scored for place, rollout in part.result().items()}
        return [
            Group(item.prompt, item.features, tuple(rollouts[index, number] for number in range(num_samples)))
            for index, item in enumerate(items)
        ]

    def _score(self, items: Sequence[EncodedPrompt], finished: Finished) -> dict[tuple[int, int], Rollout]:
        """Scores the finished samples; returns rollouts by (request, sample number)."""
        asked = [items[index].prompt for index, _, _ in finished]
        texts = [self.text_of(sample, prompt) for (_, _, sample), prompt in zip(finished, asked, strict=True)]
        verdicts = self.scorer.score(texts, [prompt.question for prompt in asked])
        return {
            (index, number): Rollout(
                one.token_ids_T, one.logprobs_T, one.finish_reason, text,
                verdict.correct, verdict.answer, str(verdict.status), verdict.decided,
            )
            for (index, number, one), text, verdict in zip(finished, texts, verdicts, strict=True)
        }  # fmt: skip

    def text_of(self, sample: Sample, prompt: Prompt | None = None) -> str:
        """The whole response: its part in the generation prompt, the prompt's opening, the decoded tokens."""
        opening = prompt.opening if prompt else ""
        return self.processor.response_prefix + opening + self.processor.decode(sample.token_ids_T)
