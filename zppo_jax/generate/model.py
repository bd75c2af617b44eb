"""A Hugging Face directory as something that answers: model, processor and the engine that samples."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from zppo_jax.compilation import Compiler
from zppo_jax.config import ConfigError
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import hf
from zppo_jax.processor import Processor
from zppo_jax.processor.chat import thinks_by_default
from zppo_jax.rollout.engine import Engine
from zppo_jax.rollout.generate import banned_mask
from zppo_jax.rollout.shapes import Shapes

MAX_PIXELS = 1_048_576
"""To which an image is shrunk unless somebody says otherwise: an image that fills the published limit of 16 million
takes 16,384 tokens."""


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """What a directory holds; `params` lie on the default device."""

    config: qwen3_5.Config
    params: dict[str, Any]
    processor: Processor

    def engine(self, shapes: Shapes, num_slots: int, prompts: int, compiler: Compiler, penalises: bool) -> Engine:
        """An engine for this model that knows its stop ids and its text."""
        banned_V, decode = banned_mask(self.config, self.processor), self.processor.decode
        return Engine(
            self.config, shapes, num_slots, prompts, banned_V, compiler, penalises=penalises, decode_text=decode
        )


def load(
    path: str, dtype: str | None = None, enable_thinking: bool | None = None, max_pixels: int | None = None
) -> Loaded:
    """Reads a directory, or OWNER/NAME of the Hub. Raises ConfigError in one line when it is none.

    `dtype` None means float32 on CPUs and bfloat16 elsewhere; `enable_thinking` None what the chat template does by
    itself; `max_pixels` None the directory's limit, but no more than MAX_PIXELS.
    """
    try:
        directory = hf.resolve(path)
        processor = _processor(directory, enable_thinking, max_pixels)
        model = qwen3_5.load(directory, dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"--model={path} does not load ({reason}): name a directory with config.json, *.safetensors and "
            "tokenizer.json of a Qwen3.5 checkpoint"
        ) from error
    stops = tuple(dict.fromkeys((*model.config.stop_token_ids, *processor.stop_ids)))
    return Loaded(dataclasses.replace(model.config, stop_token_ids=stops), model.params, processor)


def _processor(directory: Path, enable_thinking: bool | None, max_pixels: int | None) -> Processor:
    processor = Processor.from_directory(directory)
    limit = max_pixels or min(processor.config.max_pixels, max(MAX_PIXELS, processor.config.min_pixels))
    thinking = thinks_by_default(processor.chat_template) if enable_thinking is None else enable_thinking
    return processor.configured(enable_thinking=thinking, max_pixels=limit)


def power_of_two(size: int, smallest: int) -> int:
    """The next power of two: so that prompts of other lengths mostly find their programs in the cache."""
    return max(smallest, 1 << max(size - 1, 0).bit_length())
