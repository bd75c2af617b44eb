"""zppo_jax's side of a comparison of sampling; benchmarks.rollout starts it."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import worker
from benchmarks.rollout_cases import CASES, CHECKED_TOKENS, Case


def text_features(config: Any, token_ids_T: np.ndarray) -> Any:
    """Makes a prompt of text."""
    from zppo_jax.types import Features

    length = len(token_ids_T)
    return Features(
        token_ids_T=np.asarray(token_ids_T, np.int32),
        token_types_T=np.zeros(length, np.int32),
        positions_3T=np.tile(np.arange(length, dtype=np.int32), (3, 1)),
        rope_delta=0,
        patches=np.zeros((0, config.vision.patch_dim), np.uint8),
        grid_thw_N3=np.zeros((0, 3), np.int32),
    )


def make_engine(case: Case, config: Any, compiler: Any) -> Any:
    """Makes the engine as the trainer does, without stop tokens and banned ids: the peer samples any token."""
    import dataclasses

    from zppo_jax.rollout.engine import Engine
    from zppo_jax.rollout.shapes import Shapes

    config = dataclasses.replace(config, stop_token_ids=())
    shapes = Shapes((case.prompt,), config.vision.spatial_merge_size**2, case.new)
    banned_V = np.zeros(config.text.vocab_size, bool)
    return Engine(config, shapes, case.slots, max(case.slots // case.rollouts, 1), banned_V, compiler)


def prepare(case: Case, checkpoint: str, refills: bool = True) -> tuple[worker.Run, worker.Run, dict[str, Any]]:
    """Load and sample through `rollout.sample`; the decoding weights are made before, as after an update, and their
    time is reported. Without `refills`, prompts are requested in batches that fill the slots, each after the longest
    response of the previous one has ended."""
    import jax

    from zppo_jax import compilation
    from zppo_jax.models import qwen3_5
    from zppo_jax.rollout.filters import Sampling
    from zppo_jax.rollout.requests import Request
    from zppo_jax.rollout.sample import sample as sample_requests

    compilation.keep_memory()
    model = qwen3_5.load(checkpoint)
    engine = make_engine(case, model.config, compilation.Compiler())
    prompts = [text_features(model.config, ids_T) for ids_T in case.token_ids(model.config.text.vocab_size)]
    at_once = len(prompts) if refills else case.slots // case.rollouts
    occupancy: list[float] = []
    weights: list[float] = []

    def sample(limits: Sequence[int], sampling: Sampling) -> list[Any]:
        """All responses."""
        requests = [
            Request(f"question {index}", features, case.rollouts, sampling, max_new_tokens=limit)
            for index, (features, limit) in enumerate(zip(prompts, limits, strict=True))
        ]
        groups, tokens, slot_steps = [], 0, 0
        for first in range(0, len(requests), at_once):
            groups += sample_requests(engine, model.params, requests[first : first + at_once])
            done = engine.kept.counters.take()
            tokens, slot_steps = tokens + done.tokens, slot_steps + done.slot_steps
        occupancy[:] = [tokens / slot_steps]
        if tokens != sum(limits) * case.rollouts:
            raise RuntimeError(f"{case.name}: {tokens} tokens instead of {sum(limits) * case.rollouts}")
        return groups

    def run() -> Any:
        return sample(case.lengths.tolist(), Sampling(temperature=1.0))

    def check() -> list[float]:
        greedy = [group[0] for group in sample([CHECKED_TOKENS] * len(prompts), Sampling(temperature=0.0))]
        tokens = [int(token) for one in greedy for token in one.token_ids_T]
        logprobs = [round(float(logprob), 5) for one in greedy for logprob in one.logprobs_T]
        run()
        engine.kept.release()
        start = time.process_time()
        jax.block_until_ready(engine.get_weights(model.params))
        weights[:] = [time.process_time() - start]
        return [case.tokens, *tokens, *logprobs]

    facts = {"versions": {"jax": jax.__version__}, "extra": {"occupancy": occupancy, "weights_cpu_seconds": weights}}
    return run, check, facts


if __name__ == "__main__":
    worker.serve(CASES, functools.partial(prepare, refills=True))
