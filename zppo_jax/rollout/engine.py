"""The calls of a sampler: each runs one of its programs. session.py decides which one runs next."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from zppo_jax.models.qwen3_5 import decode_weights, text
from zppo_jax.models.qwen3_5.inputs import Inputs
from zppo_jax.rollout import slots
from zppo_jax.rollout.admission import Admission, new_rows
from zppo_jax.rollout.kept import NO_IMAGE, Kept
from zppo_jax.rollout.lane import Lane
from zppo_jax.rollout.programs import Programs
from zppo_jax.rollout.requests import Request
from zppo_jax.rollout.state import Chunk, Slots


class Prefilled(NamedTuple):
    """Prefilled prompts of one bucket: their caches, and their input arrays."""

    cache: text.Cache
    batch: Inputs
    bucket: int


@dataclasses.dataclass(frozen=True, eq=False)
class Engine(Programs):
    """A sampler: its programs, and the other things that their calls need.

    `decode_text`, from token ids to text, is needed for stop strings. `report` gets a line for the user after every
    chunk of sample.py; an exception in it ends the sampling. `kept` holds what is cached between calls; engines that
    sample from different parameters must not share it. `lane` does the sampling of sample.py, if the engine's devices
    work beside the main thread.
    """

    decode_text: Callable[[np.ndarray], str] | None = None
    report: Callable[[str], None] | None = None
    kept: Kept = dataclasses.field(default_factory=Kept)
    lane: Lane | None = None

    def limit_of(self, request: Request) -> int:
        """The most new tokens of a response."""
        longest = self.shapes.max_new_tokens
        return longest if request.max_new_tokens is None else min(request.max_new_tokens, longest)

    def get_weights(self, params: dict[str, Any]) -> decode_weights.Weights:
        """Returns the decoding weights, made from the parameters once; `kept.release()` frees their memory."""
        join = self.compile_join(params)

        def make() -> decode_weights.Weights:
            joined = join(params["text"])
            return joined if self.moves else joined | decode_weights.uncopied(params["text"], self.num_slots)

        return self.kept.weights.get(join, params, make)

    def prefill(self, params: dict[str, Any], requests: Sequence[Request], bucket: int) -> Prefilled:
        """Runs the prompts of up to `prompts_per_call` requests, without their last tokens."""
        batch = self.batch_prompts([request.features for request in requests], bucket)
        batch["features_IMD"] = self._image_features(params, requests, batch)
        chosen = {name: batch[name] for name in slots.PREFILL_INPUTS}
        return Prefilled(self.compile_prefill(params, bucket)(params, chosen), batch, bucket)

    def _image_features(self, params: dict[str, Any], requests: Sequence[Request], batch: Inputs) -> jax.Array:
        keys = [(request.vision_key or None) if request.features.num_patches else NO_IMAGE for request in requests]
        keys += [NO_IMAGE] * (self.prompts_per_call - len(requests))
        images = batch["patches_ISC"], batch["grid_IS5"]
        return self.kept.features.get(keys, params["vision"], lambda: self.compile_encode(params)(params, *images))

    def fill(self, params: dict[str, Any], state: Slots, prefilled: Prefilled, admitted: Sequence[Admission]) -> Slots:
        """Copies prefilled prompts into free slots; `state` is donated."""
        rows = new_rows(admitted, prefilled.batch, self.num_slots, self.penalised_tokens)
        rows = jax.device_get(rows)  # from the host, the program places them wherever the compiler wants
        fill = self.compile_fill(params, prefilled.bucket, state.mask_BS.shape[1])
        return fill(state, prefilled.cache, rows)

    def decode(
        self,
        params: dict[str, Any],
        weights: decode_weights.Weights,
        state: Slots,
        truncates: bool,
        num_steps: int,
        ended: Sequence[int],
    ) -> tuple[Slots, Chunk]:
        """Starts a chunk of up to `num_steps` tokens, after ending the slots `ended`; `state` is donated. Returns the
        slots and the new tokens."""
        decode = self.compile_decode(params, state.mask_BS.shape[1], truncates)
        return decode(weights, state, *self.decode_arguments(num_steps, ended))
