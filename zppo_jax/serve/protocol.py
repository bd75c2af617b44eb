"""Requests of OpenAI's chat completions, read and checked field by field.

A field that this server does not have is refused where it would change the answer, and ignored where it would not.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from zppo_jax.rollout.filters import Sampling
from zppo_jax.serve.errors import ApiError

MAX_SAMPLES = 128
_LOWEST_TEMPERATURE = 0.01  # much lower, and scores divided by it overflow
_LOWEST_TOP_P = 1e-6  # keeps the likeliest token alone, which is what 0 asks for
MAX_STOPS, MAX_STOP_LENGTH = 16, 500

_READ = {
    *("messages", "model", "n", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "repetition_penalty"),
    *("max_tokens", "max_completion_tokens", "stop", "seed", "logprobs", "top_logprobs", "stream", "stream_options"),
    "chat_template_kwargs",
}
_HARMLESS = {
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    "parallel_tool_calls",
}
"""Of accounting and caching, and what says how tools would be called if there were any."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""What this server does not do, with the values that ask for nothing."""

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclasses.dataclass(frozen=True, eq=False)
class ChatRequest:
    """A checked request; `messages` have transformers' form, `image_uris` are those of all messages in order."""

    messages: list[dict[str, Any]]
    image_uris: list[str]
    num_samples: int
    sampling: Sampling
    seed: int | None
    max_new_tokens: int
    stops: tuple[str, ...]
    logprobs: bool
    stream: bool
    include_usage: bool
    enable_thinking: bool | None

    @property
    def num_characters(self) -> int:
        """Of all texts together."""
        parts = (message["content"] for message in self.messages)
        return sum(
            len(content) if isinstance(content, str) else sum(len(part.get("text", "")) for part in content)
            for content in parts
        )


def read(content: bytes, model: str, max_new_tokens: int) -> ChatRequest:
    """The request in a body, for a server of that model and most new tokens. Raises ApiError."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise ApiError("the body must be a JSON object")
    body = {name: value for name, value in body.items() if value is not None}
    _refuse_unknown(body)
    _check_model(body.get("model"), model)
    messages, image_uris = _messages(body.get("messages"))
    stream = _boolean(body, "stream")
    options, template = _object(body, "stream_options"), _object(body, "chat_template_kwargs")
    _only(options, ("include_usage", "include_obfuscation"), "stream_options")
    _only(template, ("enable_thinking",), "chat_template_kwargs")
    if options and not stream:
        raise ApiError("stream_options needs stream=true", param="stream_options")
    if _number(body, "top_logprobs", 0, 0, 20, whole=True) > 0:
        raise ApiError("top_logprobs must be 0: only sampled tokens have log-probabilities", param="top_logprobs")
    return ChatRequest(
        messages=messages,
        image_uris=image_uris,
        num_samples=_number(body, "n", 1, 1, MAX_SAMPLES, whole=True),
        sampling=_sampling(body),
        seed=_number(body, "seed", 0, -(2**63), 2**63 - 1, whole=True) if "seed" in body else None,
        max_new_tokens=_max_new_tokens(body, max_new_tokens),
        stops=_stops(body.get("stop", [])),
        logprobs=_boolean(body, "logprobs"),
        stream=stream,
        include_usage=_boolean(options, "include_usage"),
        enable_thinking=_boolean(template, "enable_thinking") if "enable_thinking" in template else None,
    )


def _refuse_unknown(body: Mapping[str, Any]) -> None:
    for name, value in body.items():
        if name in _NEUTRAL:
            if value not in _NEUTRAL[name]:
                raise ApiError(f"{name} is not supported: leave it out", param=name, code="unsupported_parameter")
        elif name not in _READ | _HARMLESS:
            known = ", ".join(sorted(_READ))
            raise ApiError(
                f"{name} is not known: leave it out; known are {known}", param=name, code="unknown_parameter"
            )


def _check_model(asked: Any, served: str) -> None:
    if asked is not None and asked != served:
        message = f"there is no model {asked!r}: this server has {served!r} (--served_model_name names it)"
        raise ApiError(message, 404, param="model", code="model_not_found")


def _sampling(body: Mapping[str, Any]) -> Sampling:
    top_k = _number(body, "top_k", 0, -1, 2**31 - 1, whole=True)
    temperature = _number(body, "temperature", 1.0, 0, 100)
    if 0 < temperature < _LOWEST_TEMPERATURE:
        raise ApiError(f"temperature must be 0 (greedy) or at least {_LOWEST_TEMPERATURE}", param="temperature")
    return Sampling(
        temperature=temperature,
        top_k=max(top_k, 0),  # -1 means off in vLLM
        top_p=max(_number(body, "top_p", 1.0, 0, 1), _LOWEST_TOP_P),
        min_p=_number(body, "min_p", 0.0, 0, 0.999999),
        repetition_penalty=_number(body, "repetition_penalty", 1.0, 0.01, 100),
        presence_penalty=_number(body, "presence_penalty", 0.0, -2, 2),
    )


def _max_new_tokens(body: Mapping[str, Any], limit: int) -> int:
    name = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
    asked = _number(body, name, limit, 1, 2**31 - 1, whole=True)
    if asked > limit:
        raise ApiError(f"{name}={asked} exceeds this server's limit of {limit} (--max_new_tokens)", param=name)
    return asked


def _stops(stop: Any) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(one, str) and one for one in stops):
        raise ApiError("stop must be a string or a list of strings, none of them empty", param="stop")
    if len(stops) > MAX_STOPS or any(len(one) > MAX_STOP_LENGTH for one in stops):
        raise ApiError(f"stop holds at most {MAX_STOPS} strings of at most {MAX_STOP_LENGTH} characters", param="stop")
    return tuple(dict.fromkeys(stops))


# ---------------------------------------------------------------- messages


def _messages(messages: Any) -> tuple[list[dict[str, Any]], list[str]]:
    if not isinstance(messages, list) or not messages:
        raise ApiError("messages must be a list of at least one message", param="messages")
    image_uris: list[str] = []
    read = [_message(message, f"messages[{place}]", image_uris) for place, message in enumerate(messages)]
    return read, image_uris


def _message(message: Any, where: str, image_uris: list[str]) -> dict[str, Any]:
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str) or role not in _ROLES:
        raise ApiError(f"{where}.role must be one of {', '.join(_ROLES)}", param=where)
    for name in ("tool_calls", "function_call", "audio"):
        if message.get(name):
            raise ApiError(f"{where}.{name} is not supported: leave it out", param=where)
    content = message.get("content")
    if content is None and role == "assistant":
        content = ""
    if isinstance(content, list):
        content = [_part(part, f"{where}.content[{place}]", image_uris) for place, part in enumerate(content)]
        if role != "user" and any(part["type"] == "image" for part in content):
            raise ApiError(f"{where}: only a user's message may hold an image", param=where)
    elif not isinstance(content, str):
        raise ApiError(f"{where}.content must be a string or a list of parts", param=where)
    read = {"role": _ROLES[role], "content": content}
    if role == "assistant" and isinstance(message.get("reasoning_content"), str):
        read["reasoning_content"] = message["reasoning_content"]
    return read


def _part(part: Any, where: str, image_uris: list[str]) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "image_url":
        image = part.get("image_url")
        uri = image.get("url") if isinstance(image, dict) else image
        if isinstance(uri, str):
            image_uris.append(uri)
            return {"type": "image"}
    forms = '{"type": "text", "text": ...} or {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}'
    raise ApiError(f"{where} must be {forms}", param=where)


# ---------------------------------------------------------------- fields


def _number(body: Mapping[str, Any], name: str, default: Any, low: float, high: float, whole: bool = False) -> Any:
    value = body.get(name, default)
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        raise ApiError(f"{name} must be {'a whole' if whole else 'a'} number from {low} to {high}", param=name)
    return value


def _boolean(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise ApiError(f"{name} must be true or false", param=name)
    return value


def _object(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name, {})
    if not isinstance(value, dict):
        raise ApiError(f"{name} must be an object", param=name)
    return value


def _only(options: Mapping[str, Any], names: tuple[str, ...], where: str) -> None:
    for name in options:
        if name not in names:
            raise ApiError(f"{where}.{name} is not known: leave it out", param=where)
