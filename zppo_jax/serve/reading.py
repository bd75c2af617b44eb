"""Reads requests, from bytes to a prompt for the engine: outside the event loop, and before the request's deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.requests import Request

from zppo_jax.processor import Processor
from zppo_jax.rollout.shapes import PromptTooLongError, Shapes
from zppo_jax.serve import messages, protocol
from zppo_jax.serve.errors import ApiError, busy
from zppo_jax.serve.guards import Bodies, Deadline
from zppo_jax.serve.images import ImageDecoder
from zppo_jax.serve.limits import SMALL_BODY, Limits, PromptLimits
from zppo_jax.serve.protocol import ChatRequest
from zppo_jax.serve.scheduler import QueueFullError, Scheduler
from zppo_jax.types import Features

T = TypeVar("T")


class Reader:
    """Reads requests for one server; close it at the end.

    Three pools of threads, so that no request waits for a slower kind: small bodies, large ones (one
    thread: Python holds its lock while it parses), and images.
    """

    def __init__(
        self, name: str, processor: Processor, shapes: Shapes, scheduler: Scheduler, decoder: ImageDecoder,
        limits: Limits,
    ) -> None:  # fmt: skip
        self._name, self._processor, self._shapes = name, processor, shapes
        self._scheduler, self._decoder, self._limits = scheduler, decoder, limits
        self._prompts = PromptLimits.for_server(shapes, processor, limits.images)
        self._bodies = Bodies(limits.all_bodies_bytes)
        self._small = ThreadPoolExecutor(2, thread_name_prefix="small")
        self._large = ThreadPoolExecutor(1, thread_name_prefix="large")
        self._images = ThreadPoolExecutor(decoder.num_workers, thread_name_prefix="images")
        self._num_with_images = 0

    def close(self) -> None:
        for pool in (self._small, self._large, self._images):
            pool.shutdown(cancel_futures=True)

    async def read(self, request: Request) -> tuple[ChatRequest, Features]:
        """Reads a request and its prompt, and reserves room for its responses. Raises ApiError."""
        deadline = Deadline(request, self._limits.seconds)
        async with (
            self._bodies.body(request, self._limits.body_bytes, deadline) as body,
            deadline.holds(busy("the request could not be read in time: try later")),
        ):
            pool = self._small if len(body) <= SMALL_BODY else self._large
            chat = await _run(pool, self._parse, body)
            return chat, await (self._with_images(chat, deadline) if chat.images else self._text(pool, chat, deadline))

    async def _text(self, pool: ThreadPoolExecutor, chat: ChatRequest, deadline: Deadline) -> Features:
        self._reserve(chat)
        try:
            return await _run(pool, self._features, chat, deadline)
        except BaseException:
            self._scheduler.release(chat.num_samples)
            raise

    async def _with_images(self, chat: ChatRequest, deadline: Deadline) -> Features:
        """Reserves room for responses after decoding the images, so that slow ones keep no text out of the queue."""
        self._reserve(chat)
        self._scheduler.release(chat.num_samples)
        if self._num_with_images >= self._scheduler.max_responses:
            raise busy(f"{self._num_with_images} requests wait for their images: try later", 429, "queue_full")
        self._num_with_images += 1
        try:
            features = await _run(self._images, self._features, chat, deadline)
        finally:
            self._num_with_images -= 1
        self._reserve(chat)
        return features

    def _reserve(self, chat: ChatRequest) -> None:
        try:
            self._scheduler.reserve(chat.num_samples)
        except QueueFullError as error:
            limit = self._scheduler.max_responses
            if chat.num_samples > limit:
                message = f"n={chat.num_samples} exceeds the {limit} responses that this server takes"
                raise ApiError(message, param="n") from error
            message = f"{self._scheduler.num_responses} responses are waiting or running, and the limit is {limit}"
            raise busy(f"{message}: try later", 429, "queue_full") from error

    # ---------------------------------------------------------------- in a thread

    def _parse(self, body: bytes) -> ChatRequest:
        return protocol.read(body, self._name, self._shapes.max_new_tokens, self._prompts)

    def _features(self, chat: ChatRequest, deadline: Deadline) -> Features:
        """Encodes the prompt of a request. Raises ApiError."""
        decoded = [self._decoder.decode(file, f"image {place}", deadline.at) for place, file in enumerate(chat.images)]
        try:
            features = self._processor.chat_features(chat.messages, decoded, chat.enable_thinking)
        except ValueError as error:
            raise ApiError(str(error), param="messages") from error
        if features.num_tokens > self._prompts.tokens:
            raise messages.too_long(f"{features.num_tokens} tokens", self._prompts.tokens)
        try:
            self._shapes.bucket_of(features)
        except PromptTooLongError as error:
            message = "the images have too many patches: send fewer or smaller ones"
            raise ApiError(message, param="messages") from error
        return features


async def _run(pool: ThreadPoolExecutor, work: Callable[..., T], *arguments: object) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, work, *arguments)
