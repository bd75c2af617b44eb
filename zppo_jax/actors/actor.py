"""An actor answers prompts: rollouts from the engine, text from the processor, verdicts from the scorer.

Student, teacher and evaluation differ only in parameters and settings. Responses are decoded to text and scored as they
finish, while sampling goes on; the groups do not depend on the order in which responses finish. What the rules leave to
a judge goes to its endpoint at once, beside the sampling; its rulings are awaited when all responses are sampled. A
judge in this process works then, in this thread: it needs the devices, which are free, and like sampling it waits for
no other host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from zppo_jax.data.processing import EncodedPrompt
from zppo_jax.judge import Case, Judge, case_of, left_open, ruled
from zppo_jax.keys import RandomStream
from zppo_jax.processor import Processor
from zppo_jax.rewards.scorer import Scorer
from zppo_jax.rewards.verdict import Verdict
from zppo_jax.rollout import sample as sampler
from zppo_jax.rollout.engine import Engine
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.requests import Request, Sample
from zppo_jax.rollout.sample import Finished
from zppo_jax.types import Group, Prompt, Question, Rollout

_Rollouts = dict[tuple[int, int], Rollout]
"""Rollouts by (request, sample number)."""


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
    ) -> list[Group]:
        """Samples one group of `num_samples` scored rollouts for each prompt, in order."""
        requests = [
            Request(item.prompt.uid, item.features, num_samples, sampling, stream, vision_key=item.prompt.question.id)
            for item in items
        ]
        scored: list[Future[_Rollouts]] = []
        with ThreadPoolExecutor(1, thread_name_prefix="scoring") as beside:
            for finished in sampler.stream(self.engine, params, requests):
                if finished:
                    scored.append(beside.submit(self._score, items, finished))
        rollouts = {place: rollout for part in scored for place, rollout in part.result().items()}
        if self.judge is not None:
            rollouts |= self._judged(items, rollouts, self.judge)
        return [
            Group(item.prompt, item.features, tuple(rollouts[index, number] for number in range(num_samples)))
            for index, item in enumerate(items)
        ]

    def _score(self, items: Sequence[EncodedPrompt], finished: Finished) -> _Rollouts:
        """Scores the finished samples; what a judge must decide is on its way to it afterwards."""
        asked = [items[index].prompt for index, _, _ in finished]
        texts = [self.text_of(sample, prompt) for (_, _, sample), prompt in zip(finished, asked, strict=True)]
        verdicts = self.scorer.score(texts, [prompt.question for prompt in asked])
        rollouts = {
            (index, number): Rollout(
                one.token_ids_T, one.logprobs_T, one.finish_reason, text,
                verdict.correct, verdict.answer, str(verdict.status), verdict.decided,
            )
            for (index, number, one), text, verdict in zip(finished, texts, verdicts, strict=True)
        }  # fmt: skip
        if self.judge is not None:
            self.judge.ahead(list(self._cases(items, rollouts).values()))
        return rollouts

    def _cases(self, items: Sequence[EncodedPrompt], rollouts: _Rollouts) -> dict[tuple[int, int], Case]:
        """What a judge must decide, by the place of the rollout, in the order of the places."""
        found = {place: self._case(items[place[0]].prompt.question, rollouts[place]) for place in sorted(rollouts)}
        return {place: case for place, case in found.items() if case is not None}

    def _case(self, question: Question, rollout: Rollout) -> Case | None:
        verdict = Verdict(rollout.correct, rollout.status, rollout.answer)
        return case_of(rollout.text, question, self.scorer.region) if left_open(question, verdict) else None

    def _judged(self, items: Sequence[EncodedPrompt], rollouts: _Rollouts, judge: Judge) -> _Rollouts:
        """The rollouts that a judge had to decide, with its verdicts."""
        cases = self._cases(items, rollouts)
        verdicts = {
            place: ruled(rollouts[place].answer, ruling)
            for place, ruling in zip(cases, judge.decide(list(cases.values()), self.engine.report), strict=True)
        }
        return {
            place: dataclasses.replace(
                rollouts[place], correct=one.correct, status=str(one.status), decided=one.decided
            )
            for place, one in verdicts.items()
        }

    def text_of(self, sample: Sample, prompt: Prompt | None = None) -> str:
        """The whole response: its part in the generation prompt, the prompt's opening, the decoded tokens."""
        opening = prompt.opening if prompt else ""
        return self.processor.response_prefix + opening + self.processor.decode(sample.token_ids_T)
