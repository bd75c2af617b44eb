"""A teacher in this process: a second set of parameters behind the same sampler."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from zppo_jax.actors.actor import Actor
from zppo_jax.data.processing import EncodedPrompt
from zppo_jax.keys import RandomStream
from zppo_jax.rollout import sample as sampler
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.requests import Request
from zppo_jax.rollout.sample import Finished
from zppo_jax.teacher.batches import Batch, Batches
from zppo_jax.types import Answer, Group, Missed


@dataclasses.dataclass(frozen=True)
class LocalTeacher:
    """Samples `num_rollouts` responses per prompt with `actor`, and short texts with `writer`, without thinking.

    If `writer` is None, it writes nothing. The writer's shapes limit the length of turns and texts. With devices of its
    own it has `batches`, and begins with what is announced while the student samples. Otherwise `make_room` frees what
    the student keeps on the devices between its rollouts, before the teacher samples there.
    """

    name: str
    params: dict[str, Any]
    actor: Actor
    num_rollouts: int
    sampling: Sampling
    writer: Actor | None = None
    batches: Batches | None = None
    make_room: Callable[[], None] | None = None

    @property
    def works_beside(self) -> bool:
        """Whether it has separate devices."""
        return self.batches is not None

    def begin(self, step: int) -> None:
        """Drops what an earlier step has announced; apart from that it always comes to an end."""
        if self.batches is not None:
            self.batches.drop()

    def ahead(self, items: Sequence[EncodedPrompt], stream: RandomStream) -> None:
        """Begins to answer, if the student is not sampling on the same devices."""
        if self.batches is not None:
            self.batches.announce(items, lambda batch: self._sampled(batch, stream))

    def close(self) -> None:
        if self.batches is not None:
            self.batches.close()

    def groups(self, items: Sequence[EncodedPrompt], stream: RandomStream) -> list[Group]:
        """Samples one group of scored rollouts for each prompt, in order."""
        if self.make_room is not None:
            self.make_room()
        try:
            groups = self.actor.answer(self.params, items, self.num_rollouts, self.sampling, stream)
        finally:  # decoding weights of the largest model, and features of images that are shown once
            self.actor.engine.kept.release()
        return [dataclasses.replace(group, author="teacher") for group in groups]

    def answer(self, items: Sequence[EncodedPrompt], stream: RandomStream) -> Iterator[tuple[str, Sequence[Answer]]]:
        """Samples responses to each prompt; yields those of a prompt when all are there."""
        if self.make_room is not None:
            self.make_room()
        asked = {item.prompt.uid for item in items}
        try:
            for batch, chunks in self._batches(items, stream):
                yield from ((uid, answers) for uid, answers in self._answers(batch, chunks) if uid in asked)
        finally:
            if self.batches is not None:  # nothing may run behind the back of what follows
                self.batches.drop()
            self.actor.engine.kept.release()

    def _batches(self, items: Sequence[EncodedPrompt], stream: RandomStream) -> Sequence[Batch]:
        if self.batches is None:
            return [(items, self._sampled(items, stream))]
        return self.batches.take(items, lambda batch: self._sampled(batch, stream))

    def _sampled(self, items: Sequence[EncodedPrompt], stream: RandomStream) -> Iterator[Finished]:
        return self.actor.stream(self.params, items, self.num_rollouts, self.sampling, stream)

    def _answers(
        self, items: Sequence[EncodedPrompt], chunks: Iterator[Finished]
    ) -> Iterator[tuple[str, Sequence[Answer]]]:
        """The responses to each prompt, by its uid, when all of them are there."""
        answers: dict[int, dict[int, Answer]] = collections.defaultdict(dict)
        for finished in chunks:
            for index, number, sample in finished:
                text = self.actor.text_of(sample, items[index].prompt)
                answers[index][number] = Answer(text, sample.finish_reason)
                if len(answers[index]) == self.num_rollouts:
                    yield items[index].prompt.uid, [answers[index][n] for n in range(self.num_rollouts)]

    def write(self, asks: Sequence[str], stream: RandomStream) -> list[str | Missed]:
        """Writes a greedy text for each turn (no image, no thinking).

        A response with broken UTF-8 may need more tokens than it was sampled with; that must not end a run.
        """
        outputs: list[str | Missed] = [Missed("too_long", "longer than the prompts of the writer")] * len(asks)
        if self.writer is None:
            return outputs
        if self.make_room is not None:
            self.make_room()
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
