"""Prompts as the model reads them: plain, replayed and reformulated ones, processed in one way."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

from zppo_jax.config.schema import PromptConfig
from zppo_jax.processor import ProcessorConfig
from zppo_jax.types import Features, Prompt, Question
from zppo_jax.zppo import prompts as prompts_lib


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """A prompt and its features, which the model reads."""

    prompt: Prompt
    features: Features


def processor_settings(prompt: PromptConfig) -> dict[str, Any]:
    """The settings of `ProcessorConfig` for the prompts of a run. The frames of a video have together as many patches
    as all images of a prompt, so that they fit where these do."""
    volume = 2 * prompt.max_images * prompt.max_pixels  # two frames share a patch
    return {
        "min_pixels": prompt.min_pixels,
        "max_pixels": prompt.max_pixels,
        "video_min_pixels": min(ProcessorConfig.video_min_pixels, volume),
        "video_max_pixels": min(ProcessorConfig.video_max_pixels, volume),
    }


class PromptProcessor(Protocol):
    """The part of `zppo_jax.processor.Processor` that the pipeline uses."""

    def features(self, text: str, images: Sequence[Any], videos: Sequence[Any], /) -> Features: ...

    def num_tokens(self, text: str, image_sizes: Sequence[tuple[int, int]], videos: Sequence[Any], /) -> int: ...

    def encode_text(self, text: str, /) -> list[int]: ...


@dataclasses.dataclass(frozen=True)
class PromptProcessing:
    """Turns a question or a prompt into features, in the same way for plain, replayed and reformulated prompts.

    Picklable when the processor is, so that it can run in Grain's worker processes.
    """

    processor: PromptProcessor
    template: prompts_lib.Template

    def plain_prompt(self, question: Question, uid: str, kind: str = "plain") -> Prompt:
        """The prompt that asks a question unchanged, closer included."""
        return Prompt(uid, kind, question, prompts_lib.plain_text(question.text, self.template))

    def item(self, prompt: Prompt) -> EncodedPrompt:
        """Computes tokens and positions of one prompt; its patches are made when they are used.

        Raises ValueError, naming the question, for an image or video that cannot be encoded.
        """
        question = prompt.question
        try:
            features = self.processor.features(prompt.text, question.images, question.videos)
            return EncodedPrompt(prompt, features.followed_by(self.processor.encode_text(prompt.opening)))
        except ValueError as error:
            raise ValueError(f"question {prompt.question.id}: {error}") from error

    def num_tokens(self, prompt: Prompt) -> int:
        """The number of tokens that `item` would give for a prompt, computed without pixels."""
        question = prompt.question
        sizes = [(image.shape[0], image.shape[1]) for image in question.images]
        num_shown = self.processor.num_tokens(prompt.text, sizes, question.videos)
        return num_shown + len(self.processor.encode_text(prompt.opening))

    def items_of(self, prompts: Sequence[Prompt]) -> list[EncodedPrompt]:
        """Processes existing prompts, in order."""
        return [self.item(prompt) for prompt in prompts]
