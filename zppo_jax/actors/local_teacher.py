"""A teacher in this process: a second set of parameters behind the same sampler."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from zppo_jax import prompts
from zppo_jax.actors.actor import Actor
from zppo_jax.data.pipeline import Item as PromptItem
from zppo_jax.processor import Processor
from zppo_jax.rewards import Item
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.requests import Draw, Request
from zppo_jax.types import Group
from zppo_jax.zppo.summaries import (
    Candidate,
    Checked,
    accept_summary,
    boxed_answer,
    fallback_summary,
    written_alike,
)

_COMPARED_AS = {"anls": "string", "grounding": "string", "clicking": "string"}
"""Types whose rule takes what is near: as answers of one response, near is not the same."""


class Summaries(NamedTuple):
    """The text of each candidate; of `num_asked` summaries those that could not stand for their response are counted in
    `refused`, by (author, reason): they show the response's end instead."""

    texts: Mapping[Candidate, str]
    num_asked: int
    refused: collections.Counter[tuple[str, str]]


class Teacher(Protocol):
    """What the training step asks of a teacher."""

    def answer(self, items: Sequence[PromptItem], *, seed: int, step: int) -> list[Group]:
        """Scored teacher rollouts on questions, fresh on every visit."""
        ...

    def compress(self, candidates: Sequence[Candidate], *, seed: int, step: int) -> Summaries:
        """The text that each candidate shows in a prompt."""
        ...


@dataclasses.dataclass(frozen=True)
class LocalTeacher:
    """Rolls out and compresses with parameters of its own; `compressor` None means the fallback for every candidate.

    `max_tokens` bounds a candidate. A summary that is missing, or lost or changed the boxed answer, is replaced by the
    response's last `max_tokens` tokens with the original box at the end (Fig 16 describes no check; models need one).
    Whether it changed the answer is for the scorer to say, as in a reward.
    """

    params: dict[str, Any]
    actor: Actor
    num_rollouts: int
    temperature: float
    top_p: float
    max_tokens: int
    compressor: Actor | None = None

    def answer(self, items: Sequence[PromptItem], *, seed: int, step: int) -> list[Group]:
        sampling = Sampling(self.temperature, top_p=self.top_p)
        groups = self.actor.answer(self.params, items, self.num_rollouts, sampling, Draw(seed, step, "teacher"))
        self.actor.engine.held.release()  # a copy of the largest model there is
        self.actor.engine.vision.release()  # a question is asked once
        return groups

    def compress(self, candidates: Sequence[Candidate], *, seed: int, step: int) -> Summaries:
        unique = list(dict.fromkeys(candidates))
        if self.compressor is None:
            return Summaries({one: self._fallback(one) for one in unique}, 0, collections.Counter())
        outputs = dict(zip(unique, self._outputs(unique, seed, step), strict=True))
        equal = self._compared(outputs)
        texts: dict[Candidate, str] = {}
        refused: collections.Counter[tuple[str, str]] = collections.Counter()
        for candidate, output in outputs.items():
            if output is None:
                checked = Checked("", "too_long")
            else:
                checked = accept_summary(output, candidate.answer, equal.get(candidate))
            texts[candidate] = self._fallback(candidate) if checked.refusal else checked.text
            if checked.refusal:
                refused[candidate.author, checked.refusal] += 1
        return Summaries(texts, len(unique), refused)

    def _compared(self, outputs: Mapping[Candidate, str | None]) -> dict[Candidate, bool | None]:
        """Whether the answers of response and summary are equal where they are not written alike, either one as the
        gold: a response's may be none that a rule reads as a gold. None: undecided. All are scored at once."""
        found = {one: boxed_answer(output) for one, output in outputs.items() if output and one.answer is not None}
        asked = [
            (one, one.answer, other)
            for one, other in found.items()
            if one.answer is not None and other and not written_alike(one.answer, other)
        ]
        verdicts = self.actor.scorer.score_many(
            Item(rf"\boxed{{{answer}}}", gold, _COMPARED_AS.get(one.answer_type, one.answer_type), "anywhere")
            for one, first, second in asked
            for answer, gold in ((second, first), (first, second))
        )
        equal: dict[Candidate, bool | None] = {}
        for (one, _, _), pair in zip(asked, zip(verdicts[::2], verdicts[1::2], strict=True), strict=True):
            equal[one] = any(v.correct for v in pair) or (False if any(v.decided for v in pair) else None)
        return equal

    def _fallback(self, candidate: Candidate) -> str:
        return fallback_summary(candidate.text, candidate.answer, self._last_tokens)

    def _last_tokens(self, text: str) -> str:
        processor: Processor = self.actor.processor
        ids = processor.encode_text(text)
        return text if len(ids) <= self.max_tokens else processor.decode(ids[-self.max_tokens :])

    def _outputs(self, candidates: Sequence[Candidate], seed: int, step: int) -> list[str | None]:
        """Greedy answers to the compression prompt (no image, no question, no thinking); None where it is too long.

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
        outputs: list[str | None] = [None] * len(candidates)
        for index, group in zip(fitting, samples, strict=True):
            outputs[index] = self.compressor.text_of(group[0])
        return outputs
