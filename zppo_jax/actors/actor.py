"""An actor answers prompts: rollouts from the engine, text from the processor, verdicts from the scorer.

Student, teacher and evaluation differ only in parameters and settings. Responses are decoded to text and scored as they
finish, while sampling goes on; the groups do not depend on the order in which responses finish. What the rules leave to
a judge goes to its endpoint at once, beside the sampling; its rulings are awaited when all responses are sampled. A
judge in this process works then, in this thread: it needs the devices, which are free, and like sampling it waits for
no other host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from zppo_jax.actors.scoring import Scoring
from zppo_jax.data.processing import EncodedPrompt
from zppo_jax.judge import Judge
from zppo_jax.keys import RandomStream
from zppo_jax.processor import Processor
from zppo_jax.rewards.scorer import Scorer
from zppo_jax.rewards.verdict import Verdict
from zppo_jax.rollout import sample as sampler
from zppo_jax.rollout.engine import Engine
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.requests import Request, Sample
from zppo_jax.rollout.sample import Finished
from zppo_jax.types import Group, Prompt, Rollout

Scored = dict[tuple[int, int], Rollout]
"""Rollouts by (index of the prompt, number of the sample)."""


@dataclasses.dataclass(frozen=True)
class Actor:
    """Turns prompts into scored groups; without a `judge`, what only a judge can decide is undecided."""

    engine: Engine
    processor: Processor
    scorer: Scorer
    judge: Judge | None = None

    def answer(
        self,
        params: dict[str, Any],
        items: Sequence[EncodedPrompt],
        num_samples: int,
        sampling: Sampling,
        stream: RandomStream,
        watch: Callable[[Scored], None] | None = None,
    ) -> list[Group]:
        """Samples one group of `num_samples` scored rollouts for each prompt, in order.

        `watch` is called, in another thread, with the rollouts that were scored since the last call, in an order that
        does not depend on the clock.
        """
        scored: list[Future[Scored]] = []
        with ThreadPoolExecutor(1, thread_name_prefix="scoring") as beside:
            for finished in self.stream(params, items, num_samples, sampling, stream):
                if finished:
                    scored.append(beside.submit(self._score, items, finished, watch))
        rollouts = {place: rollout for part in scored for place, rollout in part.result().items()}
        if self.judge is not None:
            rollouts |= self._judged(items, rollouts)
        return [
            Group(item.prompt, item.features, tuple(rollouts[index, number] for number in range(num_samples)))
            for index, item in enumerate(items)
        ]

    def stream(
        self,
        params: dict[str, Any],
        items: Sequence[EncodedPrompt],
        num_samples: int,
        sampling: Sampling,
        stream: RandomStream,
    ) -> Iterator[Finished]:
        """Samples `num_samples` responses to each prompt; yields them as they finish."""
        requests = [
            Request(item.prompt.uid, item.features, num_samples, sampling, stream, vision_key=item.prompt.question.id)
            for item in items
        ]
        return sampler.stream(self.engine, params, requests)

    @property
    def scoring(self) -> Scoring:
        """The verdicts on its responses."""
        return Scoring(self.scorer, self.judge)

    def _score(
        self, items: Sequence[EncodedPrompt], finished: Finished, watch: Callable[[Scored], None] | None
    ) -> Scored:
        """Scores the finished samples; what a judge must decide is on its way to it afterwards."""
        asked = [items[index].prompt for index, _, _ in finished]
        texts = [self.text_of(sample, prompt) for (_, _, sample), prompt in zip(finished, asked, strict=True)]
        verdicts = self.scoring.rules(texts, [prompt.question for prompt in asked])
        rollouts = {
            (index, number): Rollout(
                one.token_ids_T, one.logprobs_T, one.finish_reason, text,
                verdict.correct, verdict.answer, str(verdict.status), verdict.decided,
            )
            for (index, number, one), text, verdict in zip(finished, texts, verdicts, strict=True)
        }  # fmt: skip
        if watch is not None:
            watch(rollouts)
        return rollouts

    def _judged(self, items: Sequence[EncodedPrompt], rollouts: Scored) -> Scored:
        """The rollouts with the judge's verdicts, in the order of their places."""
        places = sorted(rollouts)
        verdicts = self.scoring.rulings(
            [rollouts[place].text for place in places],
            [items[index].prompt.question for index, _ in places],
            [Verdict(one.correct, one.status, one.answer) for one in map(rollouts.__getitem__, places)],
            self.engine.report,
        )
        return {
            place: dataclasses.replace(
                rollouts[place], correct=one.correct, status=str(one.status), decided=one.decided
            )
            for place, one in zip(places, verdicts, strict=True)
        }

    def text_of(self, sample: Sample, prompt: Prompt | None = None) -> str:
        """The whole response: its part in the generation prompt, the prompt's opening, the decoded tokens."""
        opening = prompt.opening if prompt else ""
        return self.processor.response_prefix + opening + self.processor.decode(sample.token_ids_T)
