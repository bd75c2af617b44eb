"""The host side of sampling: many prompts of different lengths through a few fixed shapes.

Prompts are sorted into length buckets, prefilled `prompts_per_call` at a time and forked to rows; every decode call
has the same number of rows. Results come back in the order of the prompts.

Shape suffixes: P prompts, B rows, R new tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from zppo_jax import parallel
from zppo_jax.compilation import Compiler, Program, shapes_of
from zppo_jax.models.qwen3_5 import inputs, text
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.rollout import filters, sampler
from zppo_jax.rollout.shapes import Shapes
from zppo_jax.types import Features, FinishReason

PURPOSES = {"student": 1, "teacher": 2, "reformulated": 3, "evaluate": 4, "compress": 5}
"""What a draw is for: a part of every key, so that no two uses share random numbers."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """One sampled response: token ids (stop token included), their log-probabilities, why it ended."""

    token_ids_T: np.ndarray
    logprobs_T: np.ndarray
    finish_reason: FinishReason


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt that wants `num_samples` responses; `uid` seeds them."""

    uid: str
    features: Features
    num_samples: int


@functools.partial(jax.jit, static_argnums=2)
def _row_keys(seed: int, step: int, purpose: int, uid_B: jax.Array, sample_B: jax.Array) -> jax.Array:
    base = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), purpose)
    return jax.vmap(lambda uid, sample: jax.random.fold_in(jax.random.fold_in(base, uid), sample))(uid_B, sample_B)


def _hash32(uid: str) -> int:
    return int.from_bytes(hashlib.blake2b(uid.encode(), digest_size=4).digest(), "little")


@dataclasses.dataclass(frozen=True)
class Engine:
    """Samples responses for any number of prompts with a bounded set of compiled programs.

    Programs: one prefill and one decode for each prompt bucket (and a fork for each number of prefilled batches).
    `banned_ids` are never sampled; `name` tells this engine's programs from those of another with other shapes.
    """

    config: Config
    shapes: Shapes
    rows_per_call: int
    prompts_per_call: int
    banned_V: np.ndarray
    compiler: Compiler
    name: str = ""

    def prepare(self, params: dict[str, Any]) -> None:
        """Start compiling everything, short prompts first; `params` may be shapes."""
        for bucket in range(len(self.shapes.buckets)):
            self._prefill(params, bucket)
            self._decode(params, bucket)

    def sample(
        self,
        params: dict[str, Any],
        requests: Sequence[Request],
        sampling: dict[str, Any],
        *,
        seed: int,
        step: int,
        purpose: str,
        on_rows: Callable[[int], None] | None = None,
    ) -> list[list[Sample]]:
        """Responses of each request, in order. `on_rows` is told the number of finished rows after each call."""
        calls = []
        for bucket, members in self._by_bucket(requests):
            for rows in self._calls(requests, members):
                keys = _row_keys(seed, step, PURPOSES[purpose], *self._identity(requests, rows))
                calls.append((rows, self._dispatch(params, requests, rows, bucket, keys, sampling)))
        out: list[list[Sample]] = [[] for _ in requests]
        for rows, pending in calls:
            result = jax.device_get(pending)
            for row, (index, _) in enumerate(rows):
                out[index].append(_sample(result, row))
            if on_rows:
                on_rows(len(rows))
        return out

    def _prompts(self, features: Sequence[Features], bucket: int) -> inputs.Inputs:
        return inputs.from_features(
            self.config, features, self.prompts_per_call, self.shapes.buckets[bucket], self.shapes.patch_slots
        )

    def _prefill(self, params: dict[str, Any], bucket: int) -> Program:
        def lower() -> Any:
            return sampler.prefill.lower(shapes_of(params), self.config, prompt_inputs(self._prompts([], bucket)))

        return self.compiler.program(f"{self.name}prefill of {self.shapes.buckets[bucket]} tokens", lower)

    def _decode(self, params: dict[str, Any], bucket: int) -> Program:
        def lower() -> Any:
            cache = jax.eval_shape(
                lambda params: sampler.fork(
                    (sampler.prefill(params, self.config, prompt_inputs(self._prompts([], bucket))),),
                    np.zeros(self.rows_per_call, np.int32),
                ),
                shapes_of(params),
            )
            cache = parallel.placed_shapes(cache, text.CACHE_AXES)
            row_B = np.zeros(self.rows_per_call, np.int32)
            keys_B = _row_keys(0, 0, 0, row_B.astype(np.uint32), row_B.astype(np.uint32))
            rest = self._decode_arguments(row_B, row_B, keys_B, 0, filters.settings())
            return sampler.decode.lower(shapes_of(params), self.config, self.shapes.max_new_tokens, cache, *rest)

        return self.compiler.program(f"{self.name}decode after {self.shapes.buckets[bucket]} tokens", lower)

    def _decode_arguments(self, last_B, position_B, keys_B, num_rows: int, sampling: dict[str, Any]) -> tuple[Any, ...]:
        return (
            last_B,
            position_B,
            keys_B,
            np.arange(self.rows_per_call) < num_rows,
            np.asarray(self.config.stop_token_ids, np.int32),
            self.banned_V,
            np.int32(self.config.pad_token_id),
            sampling,
        )

    def _by_bucket(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[int]]]:
        places = [self.shapes.bucket_of(request.features, request.uid) for request in requests]
        for bucket in range(len(self.shapes.buckets)):
            members = [index for index, place in enumerate(places) if place == bucket]
            if members:
                yield bucket, members

    def _calls(self, requests: Sequence[Request], members: Sequence[int]) -> Iterator[list[tuple[int, int]]]:
        """(request, sample) pairs of each decode call."""
        rows = [(index, sample) for index in members for sample in range(requests[index].num_samples)]
        for start in range(0, len(rows), self.rows_per_call):
            yield rows[start : start + self.rows_per_call]

    def _identity(self, requests: Sequence[Request], rows: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        uid_B, sample_B = (np.zeros(self.rows_per_call, np.uint32) for _ in range(2))
        uid_B[: len(rows)] = [_hash32(requests[index].uid) for index, _ in rows]
        sample_B[: len(rows)] = [sample for _, sample in rows]
        return uid_B, sample_B

    def _dispatch(self, params, requests, rows, bucket, keys_B, sampling) -> dict[str, jax.Array]:
        """Prefill the prompts of `rows`, fork, decode; nothing here waits for the device."""
        order = list(dict.fromkeys(index for index, _ in rows))
        place = {index: prompt for prompt, index in enumerate(order)}
        prompts = [requests[index].features for index in order]
        caches, last, position = [], [], []
        for start in range(0, len(prompts), self.prompts_per_call):
            batch = self._prompts(prompts[start : start + self.prompts_per_call], bucket)
            last.append(batch["last_B"])
            position.append(batch["last_position_B"])
            caches.append(self._prefill(params, bucket)(params, prompt_inputs(batch)))
        row_B = np.zeros(self.rows_per_call, np.int32)
        row_B[: len(rows)] = [place[index] for index, _ in rows]
        last_B, position_B = np.concatenate(last)[row_B], np.concatenate(position)[row_B]
        arguments = self._decode_arguments(last_B, position_B, keys_B, len(rows), sampling)
        return self._decode(params, bucket)(params, sampler.fork(tuple(caches), row_B), *arguments)


def prompt_inputs(batch: inputs.Inputs) -> inputs.Inputs:
    """The part of a batch that prefill reads."""
    return {name: batch[name] for name in sampler.PREFILL_INPUTS}


def _sample(result: dict[str, np.ndarray], row: int) -> Sample:
    length = int(result["length_B"][row])
    return Sample(
        token_ids_T=result["tokens_BR"][row, :length].astype(np.int32),
        logprobs_T=result["logprobs_BR"][row, :length].astype(np.float32),
        finish_reason="stop" if result["stopped_B"][row] else "length",
    )
