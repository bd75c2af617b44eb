"""A judge in this process: the run's teacher, which reads the judge's prompts without thinking and answers greedily."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from concurrent.futures import Future
from typing import Any

from zppo_jax.actors.actor import Actor
from zppo_jax.judge import Case, Unanswered, judge_text
from zppo_jax.keys import RandomStream
from zppo_jax.rollout import sample as sampler
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.requests import Request
from zppo_jax.types import Features

_MARGIN = 64  # tokens: a text that is cut and encoded again may have a few more


@dataclasses.dataclass(frozen=True)
class LocalJudge:
    """Answers all waiting cases in one batch, when they are waited for, on this host's devices.

    It always comes to an end, so no deadline applies. Of a response that does not fit the engine's prompts the end is
    shown; a question that does not fit either cannot be judged. `make_room` frees what the student keeps on the devices
    between its rollouts, if the judge shares them.
    """

    params: dict[str, Any]
    actor: Actor
    make_room: Callable[[], None] | None = None
    waiting: dict[Future[str], Case] = dataclasses.field(default_factory=dict)

    def begin(self) -> None:
        self.waiting.clear()

    def submit(self, case: Case) -> Future[str]:
        future: Future[str] = Future()
        self.waiting[future] = case
        return future

    def settle(self, futures: Collection[Future[str]]) -> None:
        """Answers these. The order is that of the texts, whichever response was sampled first."""
        features = {one: self._features(self.waiting[one]) for one in sorted(futures, key=self.waiting.__getitem__)}
        for future in [one for one, found in features.items() if found is None]:
            future.set_exception(Unanswered("the question does not fit the judge's prompt", again=False))
            del features[future]
        for future, output in zip(features, self._outputs(list(filter(None, features.values()))), strict=True):
            future.set_result(output)
        for future in futures:
            del self.waiting[future]

    def give_up(self, reason: str) -> None:
        for future in self.waiting:
            future.cancel()
        self.waiting.clear()

    def close(self) -> None:
        self.waiting.clear()

    def _features(self, case: Case) -> Features | None:
        """The prompt of a case, its response cut to its end if need be; None if it is still too long."""
        shapes, processor = self.actor.engine.shapes, self.actor.processor
        features = processor.features(judge_text(case), ())
        if shapes.holds(features):
            return features
        ids = processor.encode_text(case.response)
        room = len(ids) - (features.num_tokens - shapes.buckets[-1]) - _MARGIN
        if room <= 0:
            return None
        shortened = processor.features(judge_text(case._replace(response=processor.decode(ids[-room:]))), ())
        return shortened if shapes.holds(shortened) else None

    def _outputs(self, prompts: list[Features]) -> list[str]:
        engine, greedy = self.actor.engine, Sampling(temperature=0.0)
        draw = RandomStream(purpose="judge")
        requests = [Request(f"judge/{number}", one, 1, greedy, draw) for number, one in enumerate(prompts)]
        if self.make_room is not None:
            self.make_room()
        try:
            samples = sampler.sample(engine, self.params, requests)
        finally:  # as after the teacher's answers
            engine.kept.release()
        return [self.actor.processor.decode(group[0].token_ids_T) for group in samples]
