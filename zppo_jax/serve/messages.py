"""Checks the messages of a request one by one, and counts them before anything is rendered."""

from __future__ import annotations

from typing import Any

from zppo_jax.serve import images
from zppo_jax.serve.errors import ApiError
from zppo_jax.serve.limits import PromptLimits

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def read(messages: Any, limits: PromptLimits) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Returns the messages in transformers' format, and the files of their images in order. Raises ApiError."""
    if not isinstance(messages, list) or not messages:
        raise ApiError("messages must be a list of at least one message", param="messages")
    if len(messages) > limits.messages:
        raise too_long(f"{len(messages)} messages (at most {limits.messages})", limits.tokens)
    found = _Found(limits)
    read = [_message(message, f"messages[{place}]", found) for place, message in enumerate(messages)]
    found.check()
    return read, [images.content_of(uri, f"image {place}") for place, uri in enumerate(found.image_uris)]


def too_long(size: str, longest: int) -> ApiError:
    """The error for a prompt of that size, where `longest` is the limit in tokens."""
    message = f"the prompt has {size}, more than the {longest} tokens of this server (--max_prompt_tokens)"
    return ApiError(message, param="messages", code="context_length_exceeded")


class _Found:
    """Counts the contents of all messages together: everything that a template may write."""

    def __init__(self, limits: PromptLimits) -> None:
        self._limits = limits
        self._num_characters = self._num_parts = 0
        self.image_uris: list[str] = []

    def text(self, text: str) -> str:
        self._num_characters += len(text)
        return text

    def parts(self, parts: list[Any]) -> list[Any]:
        self._num_parts += len(parts)
        if self._num_parts > self._limits.parts:
            raise too_long(f"more than {self._limits.parts} parts", self._limits.tokens)
        return parts

    def check(self) -> None:
        """Raises ApiError if a limit is exceeded."""
        if len(self.image_uris) > self._limits.images:
            message = f"{len(self.image_uris)} images, and the limit is {self._limits.images} (--max_images)"
            raise ApiError(message, param="messages")
        if self._num_characters > self._limits.characters:
            raise too_long(f"{self._num_characters} characters", self._limits.tokens)


def _message(message: Any, where: str, found: _Found) -> dict[str, Any]:
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str) or role not in _ROLES:
        raise ApiError(f"{where}.role must be one of {', '.join(_ROLES)}", param=where)
    for name in ("tool_calls", "function_call", "audio"):
        if message.get(name):
            raise ApiError(f"{where}.{name} is not supported: leave it out", param=where)
    read = {"role": _ROLES[role], "content": _content(message.get("content"), role, where, found)}
    if role == "assistant" and isinstance(message.get("reasoning_content"), str):
        read["reasoning_content"] = found.text(message["reasoning_content"])
    return read


def _content(content: Any, role: str, where: str, found: _Found) -> str | list[dict[str, Any]]:
    if content is None and role == "assistant":
        content = ""
    if isinstance(content, str):
        return found.text(content)
    if not isinstance(content, list):
        raise ApiError(f"{where}.content must be a string or a list of parts", param=where)
    parts = [_part(part, f"{where}.content[{place}]", found) for place, part in enumerate(found.parts(content))]
    if role != "user" and any(part["type"] == "image" for part in parts):
        raise ApiError(f"{where}: only a user's message may hold an image", param=where)
    return parts


def _part(part: Any, where: str, found: _Found) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": found.text(part["text"])}
    if kind == "image_url":
        image = part.get("image_url")
        uri = image.get("url") if isinstance(image, dict) else image
        if isinstance(uri, str):
            found.image_uris.append(uri)
            return {"type": "image"}
    forms = '{"type": "text", "text": ...} or {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}'
    raise ApiError(f"{where} must be {forms}", param=where)
