"""The filters, in order: each drops a row for one named reason, and the first that applies is counted.

Texts come first, since they need no image: a row group in which no text is kept is never read for its images.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from zppo_jax.data.zppo77k import directives, golds
from zppo_jax.data.zppo77k.recipe import ANSWER_TYPES, Settings, SubDataset
from zppo_jax.data.zppo77k.upstream import Upstream
from zppo_jax.processor import Processor, load_image
from zppo_jax.processor.images import image_grid, image_size
from zppo_jax.rewards import check_gold
from zppo_jax.rewards.grade import JUDGED
from zppo_jax.zppo import prompts

_TOKENS_AROUND_IMAGE = 8
"""More than the template writes around an image."""


class Reason(enum.StrEnum):
    """Why a row is dropped, in the order in which the filters are applied."""

    OTHER_SOURCE_WINS = "other_source_wins"
    PASS_RATE_MISSING = "pass_rate_missing"
    PASS_RATE = "pass_rate"
    GOLD_EMPTY = "gold_empty"
    ANSWER_TOO_LONG = "answer_too_long"
    ANSWER_TYPE = "answer_type"
    IMAGE_COUNT = "image_count"
    IMAGE_UNREADABLE = "image_unreadable"
    IMAGE_TOO_SMALL = "image_too_small"
    PROMPT_TOO_LONG = "prompt_too_long"
    GOLD_NOT_VERIFIABLE = "gold_not_verifiable"
    DECONTAMINATED = "decontaminated"
    DUPLICATE = "duplicate"
    OVER_CAP = "over_cap"


REASONS: tuple[Reason, ...] = tuple(Reason)


@dataclasses.dataclass(frozen=True)
class Asked:
    """A row that its texts do not drop: what is asked, and what is right. `num_placeholders` are those in its text."""

    question: str
    answer: str
    answer_type: str
    options: Mapping[str, Any]
    num_placeholders: int


def ask(row: Upstream, sub: SubDataset, settings: Settings, in_vero: Collection[str]) -> Asked | Reason:
    """The filters that need only the texts. `in_vero` are the canonical names that this build reads from Vero."""
    if sub.corpus == "mmfinereason":
        if settings.vero_wins == "name" and sub.name in in_vero:
            return Reason.OTHER_SOURCE_WINS
        if reason := _too_easy(row.pass_rate, settings):
            return reason
    gold = golds.unwrapped(row.gold or "")
    if not gold:
        return Reason.GOLD_EMPTY
    if len(gold) > settings.max_answer_chars:
        return Reason.ANSWER_TOO_LONG
    question = directives.cleaned(row.question, sub.directives)
    if not question:  # nothing is asked: counted as nothing to answer
        return Reason.GOLD_EMPTY
    typed = _typed(gold, question, row, settings)
    if isinstance(typed, Reason):
        return typed
    return Asked(question, *typed, directives.count_placeholders(row.question))


def _too_easy(rate: float | None, settings: Settings) -> Reason | None:
    if rate is None:
        return Reason.PASS_RATE_MISSING if settings.missing_pass_rate == "drop" else None
    return Reason.PASS_RATE if rate > settings.max_pass_rate else None


def _typed(gold: str, question: str, row: Upstream, settings: Settings) -> tuple[str, str, dict[str, Any]] | Reason:
    """(gold, answer type, the scorer's options), or the reason why there are none."""
    if not row.reward_type:
        gold, kind, options = golds.decide(gold, golds.choices(question))
    else:
        kind, options = ANSWER_TYPES.get(row.reward_type, ""), {}
    if not kind or (kind in JUDGED and settings.free_form == "drop"):
        return Reason.ANSWER_TYPE
    if kind == "list_any":
        if settings.multi_answer == "drop":
            return Reason.ANSWER_TYPE
        alternatives = golds.alternatives(gold, settings.max_answer_chars)
        return Reason.GOLD_NOT_VERIFIABLE if alternatives is None else (alternatives, kind, options)
    if kind == "multiple_choice" and row.reward_type and (choices := golds.choices(question)):
        options = {"choices": list(choices)}
    if kind in ("numeric", "number_list") and row.tolerance is not None and row.tolerance > 0:
        options = {"tolerance": row.tolerance}
    return gold, kind, options


class Looker:
    """The filters that need the images. A worker has one."""

    def __init__(self, processor: Processor, settings: Settings):
        self._processor = processor
        self._settings = settings
        self._template = prompts.get_template(settings.template)
        self._overhead = processor.num_tokens(prompts.plain_text("", self._template))

    def look(self, asked: Asked, images: Sequence[bytes | None], videos: Sequence[bytes | None]) -> list[Any] | Reason:
        """The decoded images, RGB uint8 [H, W, 3], or the reason why the row is dropped."""
        settings = self._settings
        if not settings.min_images <= len(images) <= settings.max_images:
            return Reason.IMAGE_COUNT
        if asked.num_placeholders not in (0, len(images) + len(videos)):
            return Reason.IMAGE_COUNT
        try:
            sizes = [image_size(one or b"") for one in images]
            if any(min(size) < settings.min_side for size in sizes):
                return Reason.IMAGE_TOO_SMALL
            films = [self._processor.load_video(film or b"") for film in videos]
            if not self._fits(asked.question, sizes, films):
                return Reason.PROMPT_TOO_LONG
        except ValueError:  # no image or video, or a picture too narrow for the model
            return Reason.IMAGE_UNREADABLE
        if check_gold(asked.answer, asked.answer_type, **asked.options) is not None:
            return Reason.GOLD_NOT_VERIFIABLE
        try:
            return [load_image(one or b"") for one in images]
        except ValueError:
            return Reason.IMAGE_UNREADABLE

    def _fits(self, question: str, sizes: list[tuple[int, int]], films: Sequence[Any]) -> bool:
        """Whether the prompt with images and closer fits. A token has at least a byte, so short texts need no count."""
        limit, processor = self._settings.max_prompt_tokens, self._processor
        if question.isascii() and not films:
            merge = processor.config.merge_size**2
            patches = sum(math.prod(image_grid(height, width, processor.config)) for height, width in sizes)
            if self._overhead + patches // merge + len(sizes) * _TOKENS_AROUND_IMAGE + len(question) <= limit:
                return True
        return processor.num_tokens(prompts.plain_text(question, self._template), sizes, films) <= limit
