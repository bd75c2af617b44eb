"""A teacher in this process: a second set of parameters behind the same sampler."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from zppo_jax.actors.actor import Actor
from zppo_jax.data.processing import EncodedPrompt
from zppo_jax.keys import RandomStream
from zppo_jax.rollout import sample as sampler
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.requests import Request
from zppo_jax.types import Answer, Group, Missed


@dataclasses.dataclass(frozen=True)
class LocalTeacher:
    """Samples `num_rollouts` responses per prompt with `actor`, and short texts with `writer`, without thinking.

    If `writer` is None, it writes nothing. The writer's shapes limit the length of turns and texts.
    """

    name: str
    params: dict[str, Any]
    actor: Actor
    num_rollouts: int
    sampling: Sampling
    writer: Actor | None = None

    def begin(self, step: int) -> None:
        """Does nothing: it always comes to an end."""

    def ahead(self, items: Sequence[EncodedPrompt], stream: RandomStream) -> None:
        """Does nothing: it works on the devices on which the student is sampling."""

    def close(self) -> None:
        """Does nothing."""

    def groups(self, items: Sequence[EncodedPrompt], stream: RandomStream) -> list[Group]:
        """Samples one group of scored rollouts for each prompt, in order."""
        try:
            groups = self.actor.answer(self.params, items, self.num_rollouts, self.sampling, stream)
        finally:  # decoding weights of the largest model, and features of images that are shown once
            self.actor.engine.kept.release()
        return [dataclasses.replace(group, author="teacher") for group in groups]

    def answer(self, items: Sequence[EncodedPrompt], stream: RandomStream) -> Iterator[tuple[str, Sequence[Answer]]]:
        """Samples responses to each prompt; yields those of a prompt when all are there."""
        answers: dict[int, dict[int, Answer]] = collections.defaultdict(dict)
        try:
            for finished in self.actor.stream(self.params, items, self.num_rollouts, self.sampling, stream):
                for index, number, sample in finished:
                    text = self.actor.text_of(sample, items[index].prompt)
                    answers[index][number] = Answer(text, sample.finish_reason)
                    if len(answers[index]) == self.num_rollouts:
                        yield items[index].prompt.uid, [answers[index][n] for n in range(self.num_rollouts)]
        finally:
            self.actor.engine.kept.release()

    def write(self, asks: Sequence[str], stream: RandomStream) -> list[str | Missed]:
        """Writes a greedy text for each turn (no image, no thinking).

        A response with broken UTF-8 may need more tokens than it was sampled with; that must not end a run.
        """
        outputs: list[str | Missed] = [Missed("too_long", "longer than the prompts of the writer")] * len(asks)
        if self.writer is None:
            return outputs
        engine = self.writer.engine
        features = [self.writer.processor.features(ask, ()) for ask in asks]
        fitting = [index for index, prompt in enumerate(features) if engine.shapes.holds(prompt)]
        greedy = Sampling(temperature=0.0)
        requests = [Request(f"write/{index}", features[index], 1, greedy, stream) for index in fitting]
        try:
            samples = sampler.sample(engine, self.params, requests)
        finally:
            engine.kept.release()
        for index, group in zip(fitting, samples, strict=True):
            outputs[index] = self.writer.text_of(group[0])
        return outputs
