"""The compiled programs of sampling, and what they are given.

Programs: one `join` for the weights of decoding, one `encode` for images, one `prefill` and one `fill` for each prompt
bucket, one `decode` for each ring (and one more where a request truncates its distribution). An engine that penalises
has slots of another shape, hence a `fill` and a `decode` of its own; all else it may share with one that does not.
session.py decides what runs when.

Prompts are encoded and prefilled on the compiler's mesh, where the parameters lie. Decoding may have a mesh of another
shape: parameters that are cut over fsdp would be gathered anew in every step. `join` moves the weights there, `fill`
the caches.

Shape suffixes: P prompts, B rows (slots), I rows of patches, M merged slots, D model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from zppo_jax import parallel
from zppo_jax.compilation import Compiler, Kind, Program, shapes_of
from zppo_jax.keys import RandomStream
from zppo_jax.models.qwen3_5 import inputs, steps, text
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.rollout import filters, slots
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.requests import Request, Sample, row_keys
from zppo_jax.rollout.session import Finished, stream
from zppo_jax.rollout.shapes import Shapes
from zppo_jax.rollout.statistics import Statistics
from zppo_jax.rollout.vision import NO_IMAGE, VisionFeatures
from zppo_jax.rollout.weights import HeldWeights
from zppo_jax.types import Features


@dataclasses.dataclass(frozen=True, eq=False)
class Engine:
    """Samples responses for any number of prompts with a bounded set of compiled programs.

    `num_slots` rollouts are decoded at the same time, `prompts_per_call` prompts prefilled; the host looks at what has
    finished every `chunk` tokens. `banned_V` are ids that are never sampled. `name` tells this engine's programs from
    those of another with other shapes.

    `key_dtype` (of keys, values and convolution contexts) None means the parameters' own; `state_dtype` is that of the
    recurrent states. `penalises` says whether requests may ask for penalties, which costs two flags for each row and
    token of the vocabulary. `decode_text`, from token ids to text, is needed for stop strings. `report` is told how far
    `sample` is, in a line for people, after every chunk; what it raises ends the sampling. `mesh` is that of decoding,
    the compiler's own by default.
    """

    config: Config
    shapes: Shapes
    num_slots: int
    prompts_per_call: int
    banned_V: np.ndarray
    compiler: Compiler
    name: str = ""
    chunk: int = 16
    key_dtype: str | None = None
    state_dtype: str = "float32"
    penalises: bool = False
    decode_text: Callable[[np.ndarray], str] | None = None
    report: Callable[[str], None] | None = None
    mesh: Mesh | None = None
    vision: VisionFeatures = dataclasses.field(default_factory=VisionFeatures)
    held: HeldWeights = dataclasses.field(default_factory=HeldWeights)
    statistics: Statistics = dataclasses.field(default_factory=Statistics)

    def sample(self, params: dict[str, Any], requests: Sequence[Request]) -> list[list[Sample]]:
        """All responses of each request, in order; what was done is added to `statistics`."""
        found: list[dict[int, Sample]] = [{} for _ in requests]
        for finished in self.stream(params, requests):
            for request, number, one in finished:
                found[request][number] = one
        return [[samples[number] for number in sorted(samples)] for samples in found]

    def stream(self, params: dict[str, Any], requests: Sequence[Request]) -> Iterator[Finished]:
        """What has finished after every chunk, while the next one runs; what is done is added to `statistics`."""
        done = Statistics()
        chunks = stream(self, params, requests, done, self.report)
        while True:
            with parallel.use(self.compiler.mesh):  # not while the caller has the turn
                finished = next(chunks, None)
            if finished is None:
                break
            yield finished
        self.statistics.add(done)

    # ---------------------------------------------------------------- programs

    def prepare(
        self,
        params: dict[str, Any],
        samplings: Sequence[Sampling] = (Sampling(),),
        buckets: Iterable[int] | None = None,
    ) -> None:
        """Start compiling what requests with these settings and prompts of these `buckets` (None: of all) need, short
        prompts first; `params` may be shapes."""
        self._encode_program(params)
        self._join_program(params)
        for bucket in sorted(range(len(self.shapes.buckets)) if buckets is None else set(buckets)):
            ring = self.shapes.ring_of(bucket)
            self._prefill_program(params, bucket)
            self._fill_program(params, bucket, ring)
            for truncates in sorted({one.truncates for one in samplings}):
                self._decode_program(params, ring, truncates)

    def _dtypes_of(self, params: dict[str, Any]) -> tuple[str, str]:
        return self.key_dtype or str(params["text"]["embed"].dtype), self.state_dtype

    def _slots_shapes(self, params: dict[str, Any], ring: int) -> slots.Slots:
        shapes = jax.eval_shape(lambda: self._empty(params, ring))
        return parallel.placed_shapes(shapes, slots.axes(shapes, self.config))

    def _program(
        self, name: str, lower: Callable[[], Any], kind: Kind = "sequence", mesh: Mesh | None = None
    ) -> Program:
        return self.compiler.program(self.name + name, lower, kind, mesh)

    @property
    def _kind_of_slots(self) -> str:
        """What tells programs that work on slots from those of an engine whose slots are others."""
        return "penalised " if self.penalises else ""

    @property
    def _moves(self) -> bool:
        return self.mesh is not None and self.mesh != self.compiler.mesh

    def _encode_program(self, params: dict[str, Any]) -> Program:
        def lower() -> Any:
            batch = self.prompts([], 0)
            return slots.encode.lower(shapes_of(params), self.config, batch["patches_ISC"], batch["grid_IS5"])

        return self._program("vision", lower)

    def _prefill_inputs(self, params: dict[str, Any], bucket: int) -> dict[str, Any]:
        batch = self.prompts([], bucket)
        images = (batch["patches_ISC"], batch["grid_IS5"])
        features = jax.eval_shape(lambda params, *images: slots.encode(params, self.config, *images), params, *images)
        return {name: batch.get(name, features) for name in slots.PREFILL_INPUTS}

    def _prefill_program(self, params: dict[str, Any], bucket: int) -> Program:
        def lower() -> Any:
            return slots.prefill.lower(shapes_of(params), self.config, self._prefill_inputs(params, bucket))

        return self._program(f"prefill of {self.shapes.buckets[bucket]} tokens", lower)

    def _cache_shapes(self, params: dict[str, Any], bucket: int) -> text.Cache:
        """Of a call's prompts, where the prefill leaves them."""
        batch = self._prefill_inputs(params, bucket)
        cache = jax.eval_shape(lambda params, batch: slots.prefill(params, self.config, batch), params, batch)
        with parallel.use(self.compiler.mesh):
            return parallel.placed_shapes(cache, text.CACHE_AXES)

    def _fill_program(self, params: dict[str, Any], bucket: int, ring: int) -> Program:
        def lower() -> Any:
            held, cache = self._slots_shapes(params, ring), self._cache_shapes(params, bucket)
            rows = jax.eval_shape(lambda: self.rows([], bucket))  # keys are drawn, which no absent device can
            return slots.fill.lower(held, self.config, cache, rows)

        name = f"fill of {ring} keys after {self.shapes.buckets[bucket]} tokens"
        return self._program(self._kind_of_slots + name, lower, mesh=self.mesh)

    def _join_program(self, params: dict[str, Any]) -> Program:
        def lower() -> Any:
            return steps.join.lower(shapes_of(params["text"]), self.config.text, self.num_slots, self._moves)

        return self._program("weights", lower, mesh=self.mesh)

    def _weight_shapes(self, params: dict[str, Any]) -> steps.Weights:
        shapes = jax.eval_shape(lambda text: steps.prepare(text, self.config.text, self.num_slots), params["text"])
        return parallel.placed_shapes(shapes, steps.weight_axes(self.config.text))

    def _decode_program(self, params: dict[str, Any], ring: int, truncates: bool) -> Program:
        def lower() -> Any:
            held, rest = self._slots_shapes(params, ring), self._decode_arguments(0, ())
            return slots.decode.lower(self._weight_shapes(params), self.config, self.chunk, truncates, held, *rest)

        name = f"{self._kind_of_slots}{'truncated ' if truncates else ''}decode over {ring} keys"
        return self._program(name, lower, "step", self.mesh)

    def _decode_arguments(self, num_steps: int, ended: Sequence[int]) -> tuple[Any, ...]:
        end_B = np.zeros(self.num_slots, bool)
        end_B[list(ended)] = True
        stop_ids = np.asarray(self.config.stop_token_ids or (-1,), np.int32)
        return np.int32(num_steps), end_B, stop_ids, self.banned_V

    def resident_bytes(self, params: dict[str, Any], bucket: int) -> dict[str, int]:
        """What sampling holds on each device from one program to the next, in bytes: "weights" of decoding (those that
        the parameters do not share), "slots", prefilled "prompts" of the bucket, and "features" of one call's images.
        """
        with parallel.use(self.mesh):
            shared = {} if self._moves else steps.uncopied(params["text"], self.num_slots)
            weights = {name: part for name, part in self._weight_shapes(params).items() if name not in shared}
            held = {"weights": weights, "slots": self._slots_shapes(params, self.shapes.ring_of(bucket))}
            held |= {"prompts": self._cache_shapes(params, bucket)}
        held |= {"features": self._prefill_inputs(params, bucket)["features_IMD"]}
        return {name: parallel.device_bytes(shapes) for name, shapes in held.items()}

    # ---------------------------------------------------------------- what a session calls

    def weights(self, params: dict[str, Any]) -> steps.Weights:
        """What decoding reads, made of the parameters once; `held.release()` gives its memory back."""
        join = self._join_program(params)

        def make() -> steps.Weights:
            joined = join(params["text"])
            return joined if self._moves else joined | steps.uncopied(params["text"], self.num_slots)

        return self.held.of(join, params, make)

    def empty(self, params: dict[str, Any], ring: int) -> slots.Slots:
        with parallel.use(self.mesh):
            return self._empty(params, ring)

    def _empty(self, params: dict[str, Any], ring: int) -> slots.Slots:
        return slots.empty(self.config, self.num_slots, ring, self._dtypes_of(params), self.penalises)

    def prompts(self, features: Sequence[Features], bucket: int) -> inputs.Inputs:
        """Prompts of a bucket as arrays."""
        return inputs.from_features(
            self.config, features, self.prompts_per_call, self.shapes.buckets[bucket], self.shapes.patch_slots
        )

    def prefill(self, params: dict[str, Any], requests: Sequence[Request], bucket: int) -> tuple[Any, inputs.Inputs]:
        """The cache of up to `prompts_per_call` prompts, and the arrays that they were."""
        batch = self.prompts([request.features for request in requests], bucket)
        keys = [(request.vision_key or None) if len(request.features.patches_IC) else NO_IMAGE for request in requests]
        keys += [NO_IMAGE] * (self.prompts_per_call - len(requests))
        batch["features_IMD"] = self.vision.of(
            keys,
            params["vision"],
            lambda: self._encode_program(params)(params, batch["patches_ISC"], batch["grid_IS5"]),
        )
        chosen = {name: batch[name] for name in slots.PREFILL_INPUTS}
        return self._prefill_program(params, bucket)(params, chosen), batch

    def rows(self, chosen: Sequence[tuple[int, int, Request, int]], bucket: int, batch: Any = None) -> dict[str, Any]:
        """What `fill` is told: (slot, prompt of the batch, its request, number of the sample) of each new rollout."""
        prompt_B, limit_B = np.full(self.num_slots, -1, np.int32), np.zeros(self.num_slots, np.int32)
        sampling, keys_of = [Sampling()] * self.num_slots, [(RandomStream(), "", 0)] * self.num_slots
        for slot, prompt, request, number in chosen:
            prompt_B[slot], limit_B[slot], sampling[slot] = prompt, self.limit(request), request.sampling
            keys_of[slot] = (request.draw, request.uid, number)
        batch = batch or self.prompts([], bucket)
        place_B = np.maximum(prompt_B, 0)
        rows = {
            "prompt_B": prompt_B,
            "token_B": batch["last_B"][place_B],
            "position_B": batch["last_position_B"][place_B],
            "limit_B": limit_B,
            "key_B2": row_keys(keys_of),
            "sampling": filters.settings(sampling),
        }
        return rows | ({"seen_PV": self._seen(batch)} if self.penalises else {})

    def _seen(self, batch: inputs.Inputs) -> np.ndarray:
        seen_PV = np.zeros((self.prompts_per_call, self.config.text.vocab_size), bool)
        for row, (tokens_T, mask_T, last) in enumerate(
            zip(batch["tokens_BT"], batch["mask_BT"], batch["last_B"], strict=True)
        ):
            seen_PV[row, tokens_T[mask_T]] = True
            seen_PV[row, last] = True
        return seen_PV

    def fill(self, params: dict[str, Any], held: slots.Slots, cache: Any, rows: dict[str, Any], bucket: int) -> Any:
        rows = jax.device_get(rows)  # from the host, the program takes them wherever the compiler wants them
        return self._fill_program(params, bucket, held["mask_BS"].shape[1])(held, cache, rows)

    def decode(
        self,
        params: dict[str, Any],
        weights: steps.Weights,
        held: slots.Slots,
        truncates: bool,
        num_steps: int,
        ended: Sequence[int],
    ) -> tuple[slots.Slots, dict[str, jax.Array]]:
        program = self._decode_program(params, held["mask_BS"].shape[1], truncates)
        return program(weights, held, *self._decode_arguments(num_steps, ended))

    def limit(self, request: Request) -> int:
        """Most new tokens of a response."""
        longest = self.shapes.max_new_tokens
        return longest if request.max_new_tokens is None else min(request.max_new_tokens, longest)
