"""Rendering of conversations with a Jinja chat template, in transformers' sandbox."""

from __future__ import annotations

import collections
import dataclasses
import importlib.resources
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zppo_jax.processor import templates
from zppo_jax.processor.tokenizer import SLOT
from zppo_jax.types import IMAGE_MARK, VIDEO_MARK

_KINDS = {IMAGE_MARK: "image", VIDEO_MARK: "video"}
_MARKS = re.compile(f"({'|'.join(_KINDS)})")


@dataclasses.dataclass(frozen=True)
class UserTurn:
    """A rendered prompt: `rendered` is the template's output with the keys of `texts` in place of the texts; `kinds`
    are "image" and "video" in the order in which it shows them."""

    rendered: str
    texts: dict[str, str]
    kinds: tuple[str, ...]

    @property
    def full_text(self) -> str:
        """The prompt as one string, as transformers renders it."""
        return SLOT.sub(lambda slot: self.texts.get(slot[0], slot[0]), self.rendered)


@dataclasses.dataclass(frozen=True)
class Conversation:
    """A rendered conversation: `rendered` holds the keys of `texts` in place of their texts."""

    rendered: str
    texts: dict[str, str]


def default_chat_template() -> str:
    """The chat template of Qwen3.5, without tools."""
    return importlib.resources.files("zppo_jax.processor").joinpath("chat_template.jinja").read_text(encoding="utf-8")


def render(
    chat_template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    enable_thinking: bool | None,
    add_generation_prompt: bool = True,
) -> str:
    """Renders messages in transformers' format ({"role", "content"}).

    `enable_thinking` has no default, because the templates of the published sizes have different ones; None leaves it
    to the template. Raises ChatTemplateError (a ValueError) if the template refuses the messages or does not end.
    """
    given: dict[str, Any] = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
    return templates.render(chat_template, messages, add_generation_prompt=add_generation_prompt, **given)


def render_user_turn(
    chat_template: str, text: str, num_images: int, num_videos: int = 0, *, enable_thinking: bool
) -> UserTurn:
    """Renders one user message, images first, then videos, then the text, and the generation prompt. If the text has a
    mark for each image and video, each is at its mark.

    The template sees a slot instead of a text, with the text's outer white space, which templates trim. So the text
    cannot steer the template. Raises ValueError if the template does not keep the slot.
    """
    content = turn_content(text, num_images, num_videos)
    kinds = tuple(part["type"] for part in content if part["type"] != "text")
    turn = [{"role": "user", "content": content}]
    conversation = render_conversation(chat_template, turn, enable_thinking=enable_thinking)
    return UserTurn(conversation.rendered, conversation.texts, kinds)


def turn_content(text: str, num_images: int, num_videos: int = 0) -> list[dict[str, str]]:
    """The parts of a user turn in their order, in transformers' format: images first, then videos, then the text; or
    each image and video at its mark, if the text has as many."""
    parts = _MARKS.split(text)
    kinds = [_KINDS[mark] for mark in parts[1::2]]
    if (kinds.count("image"), kinds.count("video")) != (num_images, num_videos):
        kinds = ["image"] * num_images + ["video"] * num_videos
        return [{"type": kind} for kind in kinds] + [{"type": "text", "text": text}]
    shown = [part for part in parts if part] or [text]
    return [{"type": _KINDS[part]} if part in _KINDS else {"type": "text", "text": part} for part in shown]


def thinks_by_default(chat_template: str) -> bool:
    """Whether the model thinks by default: the templates of the published sizes differ in this."""
    return render(chat_template, [{"role": "user", "content": "x"}], enable_thinking=None).endswith("<think>\n")


def render_conversation(
    chat_template: str, messages: Sequence[Mapping[str, Any]], *, enable_thinking: bool
) -> Conversation:
    """Renders messages in transformers' format and the generation prompt.

    As in `render_user_turn`, the template sees a slot instead of each text. An assistant's thinking is separated from
    its answer here, because the template could not find the tag; a template may drop it. Raises ValueError if the
    template refuses the messages or does not keep a slot.
    """
    texts: dict[str, str] = {}

    def slot(text: str) -> str:
        core = text.strip()
        if not core:
            return text
        name = f"\ue000text {len(texts)}\ue001"
        texts[name] = core
        return text.replace(core, name, 1)

    shown = [_with_slots(message, slot) for message in messages]
    reasoning = {message["reasoning_content"].strip() for message in shown if message.get("reasoning_content")}
    rendered = render(chat_template, shown, enable_thinking=enable_thinking)
    written = collections.Counter(SLOT.findall(rendered))  # in one pass: a search for each takes quadratic time
    for name in texts:
        if written[name] != 1 and not (name in reasoning and not written[name]):
            raise ValueError(
                f"the chat template writes the text {texts[name][:40]!r} {written[name]} times instead of once: "
                "use the chat_template.jinja of a Qwen3.5 checkpoint"
            )
    return Conversation(rendered, texts)


def _with_slots(message: Mapping[str, Any], slot: Callable[[str], str]) -> dict[str, Any]:
    """The message with slots for its texts."""
    role, content, reasoning = message["role"], message["content"], message.get("reasoning_content")
    if role == "assistant":
        content = content if isinstance(content, str) else "".join(part["text"] for part in content or ())
        if reasoning is None and "</think>" in content:
            thought, _, content = content.rpartition("</think>")
            reasoning, content = thought.split("</think>")[0].rpartition("<think>")[2], content.lstrip("\n")
    if isinstance(content, str):
        shown: Any = slot(content)
    else:
        shown = [part | {"text": slot(part["text"])} if part["type"] == "text" else part for part in content]
    given = {} if reasoning is None else {"reasoning_content": slot(reasoning)}
    return {"role": role, "content": shown} | given
