"""Rendering of conversations with a Jinja chat template, in transformers' sandbox."""

from __future__ import annotations

import dataclasses
import importlib.resources
from collections.abc import Mapping, Sequence
from typing import Any

# Stands for the user's text while the template is rendered. Private-use characters: no template spells this.
TEXT_SLOT = "\ue000user text\ue001"


@dataclasses.dataclass(frozen=True)
class UserTurn:
    """A rendered prompt: `rendered` is the template's own output with `TEXT_SLOT` in the place of `text`."""

    rendered: str
    text: str

    @property
    def full_text(self) -> str:
        """The prompt as one string, as transformers renders it."""
        return self.rendered.replace(TEXT_SLOT, self.text)


def default_chat_template() -> str:
    """The chat template of Qwen3.5, without tools."""
    return importlib.resources.files("zppo_jax.processor").joinpath("chat_template.jinja").read_text(encoding="utf-8")


def render(
    chat_template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    enable_thinking: bool,
    add_generation_prompt: bool = True,
) -> str:
    """Renders messages of transformers' form ({"role", "content"}).

    `enable_thinking` has no default, because the templates of the published sizes differ in theirs.
    Raises jinja2.TemplateError when the template refuses the messages.
    """
    # Imported here: it costs half a second, and most users of this package never render.
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template(
        conversations=[[dict(message) for message in messages]],
        chat_template=chat_template,
        add_generation_prompt=add_generation_prompt,
        enable_thinking=enable_thinking,
    )
    return rendered[0]


def render_user_turn(
    chat_template: str, text: str, num_images: int, num_videos: int = 0, *, enable_thinking: bool
) -> UserTurn:
    """Renders one user message, images first, then videos, then the text, and the generation prompt.

    The template sees a slot instead of the text, with the text's own outer white space since templates trim it. So
    nothing that the text spells can steer the template. Raises ValueError when the template does not keep the slot.
    """
    core = text.strip()
    visible = text.replace(core, TEXT_SLOT, 1) if core else text
    kinds = ["image"] * num_images + ["video"] * num_videos
    content = [{"type": kind} for kind in kinds] + [{"type": "text", "text": visible}]
    rendered = render(chat_template, [{"role": "user", "content": content}], enable_thinking=enable_thinking)
    if rendered.count(TEXT_SLOT) != bool(core):
        raise ValueError(
            f"the chat template writes the user's text {rendered.count(TEXT_SLOT)} times instead of once: "
            "use the chat_template.jinja of a Qwen3.5 checkpoint"
        )
    return UserTurn(rendered, core)
