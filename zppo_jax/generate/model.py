"""Loads a Hugging Face directory: model and processor, and the engine that samples from them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from zppo_jax import parallel
from zppo_jax.command import Devices
from zppo_jax.compilation import Compiler
from zppo_jax.errors import ConfigError
from zppo_jax.generate import devices
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import config as configs
from zppo_jax.models.qwen3_5 import config_keys, hf, quantised, vlm
from zppo_jax.processor import Processor
from zppo_jax.processor.chat import thinks_by_default
from zppo_jax.rollout import memory
from zppo_jax.rollout.banned import banned_mask
from zppo_jax.rollout.engine import Engine
from zppo_jax.rollout.shapes import Shapes

MAX_PIXELS = 1_048_576
"""The default size to which larger images are shrunk: one at the published limit of 16 million pixels takes 16,384
tokens."""


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """A loaded model directory; `params` are on `mesh`, or on the default device. Enter `mesh` to use them."""

    config: qwen3_5.Config
    params: dict[str, Any]
    processor: Processor
    devices: Devices
    mesh: jax.sharding.Mesh | None

    def describe(self) -> Iterator[str]:
        """Yields lines for the user about a model on several devices."""
        if self.mesh is not None:
            axes = quantised.with_scales(vlm.logical_axes(self.config), self.params)
            yield from parallel.describe(self.mesh, self.params, axes)

    def make_engine(
        self,
        shapes: Shapes,
        num_slots: int,
        prompts: int,
        compiler: Compiler,
        penalises: bool,
        report: Callable[[str], None],
    ) -> Engine:
        """Makes an engine for this model, with its stop ids and its decoder. `report` gets a line if it has fewer slots
        than `num_slots`; raises ConfigError if memory holds none."""
        fitting = self._num_slots(shapes, num_slots, penalises, report)
        banned_V, decode = banned_mask(self.config, self.processor), self.processor.decode
        return Engine(
            self.config, shapes, fitting, prompts, banned_V, compiler, penalises=penalises, decode_text=decode
        )

    def _num_slots(self, shapes: Shapes, wanted: int, penalises: bool, report: Callable[[str], None]) -> int:
        """The number of slots: `wanted`, or as many as the memory for caches holds."""
        dtypes = (str(self.params["text"]["embed"].dtype), Engine.state_dtype)
        budget, messages = devices.cache_budget(self.devices, self.config, self.params, wanted)
        fitting = memory.plan(self.config, shapes, wanted, budget, dtypes, penalises, messages)
        if fitting < wanted:
            report(
                f"{fitting} slots instead of {wanted}: no more fit in {budget / 1e9:.3g} GB for caches on each device"
            )
        return fitting


def load(
    path: str,
    dtype: str | None = None,
    enable_thinking: bool | None = None,
    max_pixels: int | None = None,
    wanted: Devices | None = None,
    report: Callable[[str], None] | None = None,
) -> Loaded:
    """Loads a directory, or OWNER/NAME of the Hub, onto the `wanted` devices (None: the defaults of the commands).
    Raises ConfigError in one line if it is not a checkpoint.

    `dtype` None means float32 on CPUs and bfloat16 elsewhere; `enable_thinking` None the chat template's default;
    `max_pixels` None the directory's limit, but at most MAX_PIXELS. `report` gets lines of progress for the user.
    """
    wanted, dtype = wanted or Devices(), dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    with _explained(path):
        directory = hf.resolve(path)
        processor = _processor(directory, enable_thinking, max_pixels)
        config = configs.from_directory(directory)
        config_keys.check_processor(config.vision, processor.config)
    mesh = devices.make_mesh(wanted, config)
    with _explained(path):
        params = qwen3_5.load(directory, dtype, mesh, report, "as_stored").params
    stops = tuple(dict.fromkeys((*config.stop_token_ids, *processor.stop_ids)))
    return Loaded(dataclasses.replace(config, stop_token_ids=stops), params, processor, wanted, mesh)


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turns any error about a directory into a ConfigError."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"--model={path} does not load ({reason}): name a directory with config.json, *.safetensors and "
            "tokenizer.json of a Qwen3.5 checkpoint"
        ) from error


def _processor(directory: Path, enable_thinking: bool | None, max_pixels: int | None) -> Processor:
    processor = Processor.from_directory(directory)
    limit = max_pixels or min(processor.config.max_pixels, max(MAX_PIXELS, processor.config.min_pixels))
    thinking = thinks_by_default(processor.chat_template) if enable_thinking is None else enable_thinking
    return processor.configured(enable_thinking=thinking, max_pixels=limit)


def power_of_two(size: int, smallest: int) -> int:
    """The next power of two, so that the programs for prompts of other lengths are mostly in the cache."""
    return max(smallest, 1 << max(size - 1, 0).bit_length())
