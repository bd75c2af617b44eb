"""A teacher in this process: a second set of parameters behind the same sampler."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from zppo_jax import prompts
from zppo_jax.actor import Actor
from zppo_jax.data.pipeline import Item
from zppo_jax.processor import Processor
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.requests import Draw, Request
from zppo_jax.types import Group
from zppo_jax.zppo import accept_summary, fallback_summary
from zppo_jax.zppo.reformulate import Candidate


class Teacher(Protocol):
    """What the training step asks of a teacher."""

    def answer(self, items: Sequence[Item], *, seed: int, step: int) -> list[Group]:
        """Scored teacher rollouts on questions, fresh on every visit."""
        ...

    def compress(self, candidates: Sequence[Candidate], *, seed: int, step: int) -> Mapping[Candidate, str]:
        """The text that each candidate shows in a prompt."""
        ...


@dataclasses.dataclass(frozen=True)
class LocalTeacher:
    """Rolls out and compresses with parameters of its own; `compressor` None means the fallback for every candidate.

    `max_tokens` bounds a candidate. A summary that is missing, or lost or changed the boxed answer, is replaced by the
    response's last `max_tokens` tokens with the original box at the end (Fig 16 describes no check; models need one).
    """

    params: dict[str, Any]
    actor: Actor
    num_rollouts: int
    temperature: float
    top_p: float
    max_tokens: int
    compressor: Actor | None = None

    def answer(self, items: Sequence[Item], *, seed: int, step: int) -> list[Group]:
        sampling = Sampling(self.temperature, top_p=self.top_p)
        groups = self.actor.answer(self.params, items, self.num_rollouts, sampling, Draw(seed, step, "teacher"))
        self.actor.engine.held.release()  # a copy of the largest model there is
        self.actor.engine.vision.release()  # a question is asked once
        return groups

    def compress(self, candidates: Sequence[Candidate], *, seed: int, step: int) -> Mapping[Candidate, str]:
        unique = list(dict.fromkeys(candidates))
        outputs = self._outputs(unique, seed, step) if self.compressor else [""] * len(unique)
        return {
            candidate: accept_summary(output, candidate.answer) or self._fallback(candidate)
            for candidate, output in zip(unique, outputs, strict=True)
        }

    def _fallback(self, candidate: Candidate) -> str:
        return fallback_summary(candidate.text, candidate.answer, self._last_tokens)

    def _last_tokens(self, text: str) -> str:
        processor: Processor = self.actor.processor
        ids = processor.encode_text(text)
        return text if len(ids) <= self.max_tokens else processor.decode(ids[-self.max_tokens :])

    def _outputs(self, candidates: Sequence[Candidate], seed: int, step: int) -> list[str]:
        """Greedy answers to the compression prompt (no image, no question, no thinking); "" where it is too long.

        A response of broken UTF-8 may need more tokens than it was sampled with: that must not end a run.
        """
        assert self.compressor is not None
        processor, engine = self.compressor.processor, self.compressor.engine
        features = [processor.features(prompts.compress_text(candidate.text), ()) for candidate in candidates]
        fitting = [index for index, prompt in enumerate(features) if engine.shapes.holds(prompt)]
        draw = Draw(seed, step, "compress")
        requests = [
            Request(f"compress/{index}", features[index], 1, Sampling(temperature=0.0), draw) for index in fitting
        ]
        samples = engine.sample(self.params, requests)
        engine.held.release()
        outputs = [""] * len(candidates)
        for index, group in zip(fitting, samples, strict=True):
            outputs[index] = self.compressor.text_of(group[0])
        return outputs
