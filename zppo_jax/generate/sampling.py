"""Samples the responses to one prompt, as they finish."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator

from zppo_jax.compilation import Compiler
from zppo_jax.generate import text
from zppo_jax.generate.model import Loaded, power_of_two
from zppo_jax.keys import RandomStream
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.requests import Request, Sample
from zppo_jax.rollout.session import Session
from zppo_jax.rollout.shapes import Shapes
from zppo_jax.types import Features, FinishReason

__all__ = ["GenerateRequest", "Response", "Sampling", "responses"]


@dataclasses.dataclass(frozen=True, eq=False)
class GenerateRequest:
    """One prompt, the number of responses, and their sampling settings."""

    features: Features
    num_samples: int
    sampling: Sampling
    seed: int
    max_new_tokens: int
    stops: tuple[str, ...]
    num_slots: int


@dataclasses.dataclass(frozen=True, eq=False)
class Response:
    """A finished response; `text` begins with its part in the generation prompt (`<think>`)."""

    index: int
    text: str
    finish_reason: FinishReason
    token_ids: list[int]
    logprobs: list[float]

    @property
    def logprob(self) -> float:
        return sum(self.logprobs)

    def as_text(self, num_samples: int) -> str:
        """The response as text for the user."""
        tokens = f"{len(self.token_ids)} token{'s' * (len(self.token_ids) != 1)}"
        facts = f"{self.finish_reason} after {tokens}, log-probability {self.logprob:.2f}"
        return f"--- response {self.index + 1} of {num_samples}: {facts}\n{self.text}\n"

    def as_json(self) -> str:
        """The response as JSON, in one line."""
        fields = {"index": self.index, "text": self.text, "finish_reason": self.finish_reason}
        fields |= {"num_tokens": len(self.token_ids), "logprob": self.logprob}
        return json.dumps(fields | {"token_ids": self.token_ids, "logprobs": self.logprobs}, allow_nan=False)


def responses(
    loaded: Loaded,
    request: GenerateRequest,
    compiler: Compiler,
    on_progress: Callable[[str], None],
    report: Callable[[str], None],
) -> Iterator[Response]:
    """Samples all responses, on the mesh in use; `on_progress` gets a line after every chunk of tokens, `report`
    lines that stay on the screen. Raises NotFiniteError."""
    wanted = min(request.num_slots, request.num_samples)
    engine = loaded.make_engine(_shapes(request), wanted, 1, compiler, request.sampling.penalises, report)
    session = Session(engine, loaded.params)
    session.submit(
        Request(
            uid="prompt",
            features=request.features,
            num_samples=request.num_samples,
            sampling=request.sampling,
            draw=RandomStream(request.seed),
            stop_strings=request.stops,
        )
    )
    begin: float | None = None
    while session.busy:
        events = session.advance()
        begin = begin or time.monotonic()  # compiling before the first chunk does not count
        on_progress(session.counters.line(request.num_samples, time.monotonic() - begin))
        for event in events:
            if event.sample is not None:
                yield _response(loaded, request, event.index, event.sample)


def _shapes(request: GenerateRequest) -> Shapes:
    """The shapes, in powers of two, so that the programs for a prompt of another length are mostly in the cache."""
    return Shapes(
        buckets=(power_of_two(request.features.num_tokens - 1, 64),),
        patch_slots=power_of_two(request.features.num_patches, 16),
        max_new_tokens=request.max_new_tokens,
    )


def _response(loaded: Loaded, request: GenerateRequest, index: int, sample: Sample) -> Response:
    ids, logprobs = sample.token_ids_T.tolist(), sample.logprobs_T.tolist()
    content = text.whole(loaded.processor, ids, logprobs, request.stops)
    return Response(index, loaded.processor.response_prefix + content, sample.finish_reason, ids, logprobs)
