"""The compiled programs of a sampler, and the memory that they use.

One `join` for the decoding weights, one `encode` for images, one `prefill` and one `fill` for each prompt bucket, one
`decode` for each ring (and one more if a request truncates its distribution). A sampler with penalties has slots of
another shape, hence a separate `fill` and `decode`; it may share all other programs with one without penalties.

Prompts are encoded and prefilled on the compiler's mesh, that of the parameters. Decoding may have a mesh of another
shape: parameters that are cut over fsdp would be gathered again in every step. `join` moves the weights to that mesh,
`fill` the caches.

Shape suffixes: P prompts, B rows (slots), I rows of patches, M merged slots, D model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from zppo_jax import parallel
from zppo_jax.compilation import Compiler, Kind, Program, shapes_of
from zppo_jax.models.qwen3_5 import decode_weights, inputs, text
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.rollout import slots
from zppo_jax.rollout.admission import new_rows
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.shapes import Shapes
from zppo_jax.rollout.state import Slots, empty
from zppo_jax.types import Features


@dataclasses.dataclass(frozen=True, eq=False)
class Programs:
    """A bounded set of compiled programs that samples responses for any number of prompts.

    `num_slots` rollouts are decoded at the same time, `prompts_per_call` prompts prefilled; the host collects finished
    rollouts every `chunk` tokens. `banned_V` are ids that are never sampled. `name` distinguishes these programs from
    those of another sampler with other shapes.

    `key_dtype` (of keys, values and convolution contexts) None means the parameters' dtype; `state_dtype` is that of
    the recurrent states. `penalises` says whether requests may ask for penalties, which costs two flags for each row
    and token of the vocabulary. `mesh` is the mesh of decoding, by default the compiler's.
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
    mesh: Mesh | None = None

    def prepare(
        self,
        params: dict[str, Any],
        samplings: Sequence[Sampling] = (Sampling(),),
        buckets: Iterable[int] | None = None,
    ) -> None:
        """Start compiling the programs for requests with these settings and prompts of these `buckets` (None: all),
        short prompts first; `params` may be shapes."""
        self.compile_encode(params)
        self.compile_join(params)
        for bucket in sorted(range(len(self.shapes.buckets)) if buckets is None else set(buckets)):
            ring = self.shapes.ring_of(bucket)
            self.compile_prefill(params, bucket)
            self.compile_fill(params, bucket, ring)
            for truncates in sorted({one.truncates for one in samplings}):
                self.compile_decode(params, ring, truncates)

    def resident_bytes(self, params: dict[str, Any], bucket: int) -> dict[str, int]:
        """Bytes that sampling holds on each device from one program to the next: decoding "weights" (those not shared
        with the parameters), "slots", prefilled "prompts" of the bucket, and "features" of one call's images."""
        with parallel.use(self.mesh):
            shared = {} if self.moves else decode_weights.uncopied(params["text"], self.num_slots)
            weights = {name: part for name, part in self._weight_shapes(params).items() if name not in shared}
            held = {"weights": weights, "slots": self._slots_shapes(params, self.shapes.ring_of(bucket))}
            held |= {"prompts": self._cache_shapes(params, bucket)}
        held |= {"features": self.prefill_shapes(params, bucket)["features_IMD"]}
        return {name: parallel.device_bytes(shapes) for name, shapes in held.items()}

    @property
    def moves(self) -> bool:
        """Whether decoding has another mesh than the parameters."""
        return self.mesh is not None and self.mesh != self.compiler.mesh

    # ---------------------------------------------------------------- one method per program: compiles it, once

    def compile_encode(self, params: dict[str, Any]) -> Program:
        def lower() -> Any:
            batch = self.batch_prompts((), 0)
            return slots.encode.lower(shapes_of(params), self.config, batch["patches_ISC"], batch["grid_IS5"])

        return self._compile("vision", lower)

    def compile_join(self, params: dict[str, Any]) -> Program:
        def lower() -> Any:
            return decode_weights.join.lower(shapes_of(params["text"]), self.config.text, self.num_slots, self.moves)

        return self._compile("weights", lower, mesh=self.mesh)

    def compile_prefill(self, params: dict[str, Any], bucket: int) -> Program:
        def lower() -> Any:
            return slots.prefill.lower(shapes_of(params), self.config, self.prefill_shapes(params, bucket))

        return self._compile(f"prefill of {self.shapes.buckets[bucket]} tokens", lower)

    def compile_fill(self, params: dict[str, Any], bucket: int, ring: int) -> Program:
        def lower() -> Any:
            held, cache = self._slots_shapes(params, ring), self._cache_shapes(params, bucket)
            no_rows = (), self.batch_prompts((), bucket), self.num_slots, self.penalised_tokens
            rows = jax.eval_shape(lambda: new_rows(*no_rows))  # it draws keys, and aot's devices cannot run anything
            return slots.fill.lower(held, self.config, cache, rows)

        name = f"fill of {ring} keys after {self.shapes.buckets[bucket]} tokens"
        return self._compile(self._kind_of_slots + name, lower, mesh=self.mesh)

    def compile_decode(self, params: dict[str, Any], ring: int, truncates: bool) -> Program:
        def lower() -> Any:
            held, rest = self._slots_shapes(params, ring), self.decode_arguments(0, ())
            return slots.decode.lower(self._weight_shapes(params), self.config, self.chunk, truncates, held, *rest)

        name = f"{self._kind_of_slots}{'truncated ' if truncates else ''}decode over {ring} keys"
        return self._compile(name, lower, "step", self.mesh)

    def _compile(
        self, name: str, lower: Callable[[], Any], kind: Kind = "sequence", mesh: Mesh | None = None
    ) -> Program:
        return self.compiler.program(self.name + name, lower, kind, mesh)

    @property
    def _kind_of_slots(self) -> str:
        """The prefix of the names of programs whose slots have the flags for penalties."""
        return "penalised " if self.penalises else ""

    # ---------------------------------------------------------------- their arguments

    def batch_prompts(self, features: Sequence[Features], bucket: int) -> inputs.Inputs:
        """Makes the arrays of one call from up to `prompts_per_call` prompts of a bucket."""
        length, patch_slots = self.shapes.buckets[bucket], self.shapes.patch_slots
        return inputs.from_features(self.config, features, self.prompts_per_call, length, patch_slots)

    def prefill_shapes(self, params: dict[str, Any], bucket: int) -> dict[str, Any]:
        """The inputs of `prefill`, as shapes or as arrays without prompts."""
        batch = self.batch_prompts((), bucket)
        images = (batch["patches_ISC"], batch["grid_IS5"])
        features = jax.eval_shape(lambda params, *images: slots.encode(params, self.config, *images), params, *images)
        return {name: batch.get(name, features) for name in slots.PREFILL_INPUTS}

    def decode_arguments(self, num_steps: int, ended: Sequence[int]) -> tuple[Any, ...]:
        """The arguments of `decode` after the slots; `ended` are the slots whose rollouts the host has ended."""
        end_B = np.zeros(self.num_slots, bool)
        end_B[list(ended)] = True
        stop_ids = np.asarray(self.config.stop_token_ids or (-1,), np.int32)
        return np.int32(num_steps), end_B, stop_ids, self.banned_V

    @property
    def penalised_tokens(self) -> int:
        """The number of tokens for which each slot has flags: the vocabulary if it penalises, else 0."""
        return self.config.text.vocab_size if self.penalises else 0

    def make_slots(self, params: dict[str, Any], ring: int) -> Slots:
        """Makes empty slots of `ring` keys each, on the mesh of decoding."""
        with parallel.use(self.mesh):
            return self._empty(params, ring)

    def _empty(self, params: dict[str, Any], ring: int) -> Slots:
        dtypes = self.key_dtype or str(params["text"]["embed"].dtype), self.state_dtype
        return empty(self.config, self.num_slots, ring, dtypes, self.penalises)

    def _slots_shapes(self, params: dict[str, Any], ring: int) -> Slots:
        shapes = jax.eval_shape(lambda: self._empty(params, ring))
        return parallel.placed_shapes(shapes, shapes.axes(self.config))

    def _cache_shapes(self, params: dict[str, Any], bucket: int) -> text.Cache:
        """The shapes of the cache of one call's prompts, sharded as the prefill leaves it."""
        batch = self.prefill_shapes(params, bucket)
        cache = jax.eval_shape(lambda params, batch: slots.prefill(params, self.config, batch), params, batch)
        with parallel.use(self.compiler.mesh):
            return parallel.placed_shapes(cache, text.CACHE_AXES)

    def _weight_shapes(self, params: dict[str, Any]) -> decode_weights.Weights:
        shapes = jax.eval_shape(
            lambda text: decode_weights.prepare(text, self.config.text, self.num_slots), params["text"]
        )
        return parallel.placed_shapes(shapes, decode_weights.weight_axes(self.config.text, params["text"]))
