"""Makes a server from a loaded model: shapes, engine, compiled programs, scheduler."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from zppo_jax.compilation import Compiler
from zppo_jax.errors import ConfigError
from zppo_jax.generate.model import Loaded, power_of_two
from zppo_jax.processor import Processor
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.requests import Request
from zppo_jax.rollout.sample import sample
from zppo_jax.rollout.session import Session
from zppo_jax.rollout.shapes import Shapes
from zppo_jax.serve.app import Server
from zppo_jax.serve.images import ImageDecoder
from zppo_jax.serve.limits import Limits
from zppo_jax.serve.scheduler import Scheduler
from zppo_jax.types import Features

_SMALLEST_BUCKET = 128


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of a server."""

    name: str
    num_slots: int
    prompts_per_call: int
    max_prompt_tokens: int
    max_new_tokens: int
    max_queue: int
    api_key: str | None
    max_image_pixels: int
    limits: Limits


def make_server(loaded: Loaded, options: Options, compiler: Compiler, report: Callable[[str], None]) -> Server:
    """Compiles everything and runs it once, on the mesh in use, then starts the engine's thread. `report` gets lines
    for the user."""
    shapes = _shapes(loaded.processor, options)
    engine = loaded.make_engine(shapes, options.num_slots, options.prompts_per_call, compiler, True, report)
    engine.prepare(loaded.params)
    for requests in _first_requests(loaded.processor, shapes):
        sample(engine, loaded.params, requests)
    scheduler = Scheduler(lambda: Session(engine, loaded.params), options.max_queue, loaded.mesh)
    decoder = ImageDecoder(options.max_image_pixels)
    return Server(options.name, loaded.processor, shapes, scheduler, decoder, options.limits, options.api_key)


def _shapes(processor: Processor, options: Options) -> Shapes:
    longest = options.max_prompt_tokens
    smaller = (_SMALLEST_BUCKET << place for place in range(32))
    buckets = (*(bucket for bucket in smaller if bucket < longest), longest)
    patches = options.limits.images * processor.config.max_pixels // processor.config.patch_size**2
    return Shapes(buckets, power_of_two(patches, 16), options.max_new_tokens, one_ring=True)


def _first_requests(processor: Processor, shapes: Shapes) -> Iterator[list[Request]]:
    """Yields requests that use every program: each bucket, an image, truncation.

    The features of the image stay cached under its key, so that no prompt without images ever needs the vision tower.
    """
    features = [_text(processor, bucket + 1) for bucket in shapes.buckets]
    side = processor.config.factor
    seen = processor.features("x", [np.zeros((side, side, 3), np.uint8)])
    if shapes.holds(seen):
        yield [Request("first", seen, 1, max_new_tokens=1, vision_key="first")]
    yield [Request("first", one, 1, max_new_tokens=1) for one in features]
    yield [Request("first", features[0], 1, Sampling(top_k=1), max_new_tokens=1)]


def _text(processor: Processor, num_tokens: int) -> Features:
    """Makes a prompt of that many tokens."""
    ids = np.full(num_tokens, processor.encode_text("x")[0], np.int32)
    positions_3T = np.broadcast_to(np.arange(num_tokens, dtype=np.int32), (3, num_tokens))
    patches_IC, grid_N3 = np.zeros((0, processor.config.patch_width), np.uint8), np.zeros((0, 3), np.int32)
    return Features(ids, np.zeros_like(ids), positions_3T, 0, patches_IC, grid_N3)


def describe(server: Server, address: str) -> Iterator[str]:
    """Yields lines for the user about a server that has started."""
    shapes, limits = server.shapes, server.limits
    yield f"serving {server.name} on {address}/v1"
    yield (
        f"prompts of up to {shapes.buckets[-1]} tokens and {limits.images} images, {shapes.max_new_tokens} new tokens; "
        "Ctrl-C ends it"
    )


def check(options: Options) -> None:
    """Raises ConfigError for options that contradict each other."""
    if options.max_queue < options.num_slots:
        raise ConfigError(
            f"--max_queue={options.max_queue} is below --num_slots={options.num_slots}: responses that run count too"
        )
