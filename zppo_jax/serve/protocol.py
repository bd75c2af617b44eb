"""Requests of OpenAI's chat completions, read and checked field by field.

A field that this server does not support is refused if it would change the answer, and ignored if it would not.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from zppo_jax.rollout.filters import Sampling
from zppo_jax.serve import messages
from zppo_jax.serve.errors import ApiError, shortened
from zppo_jax.serve.limits import PromptLimits

MAX_SAMPLES = 128
_LOWEST_TEMPERATURE = 0.01  # lower ones are raised to it, as in vLLM: scores divided by less overflow
_LOWEST_TOP_P = 1e-6  # keeps only the likeliest token, which is what 0 asks for
MAX_STOPS, MAX_STOP_LENGTH = 16, 500

_READ = {
    *("messages", "model", "n", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "repetition_penalty"),
    *("max_tokens", "max_completion_tokens", "stop", "seed", "logprobs", "top_logprobs", "stream", "stream_options"),
    "chat_template_kwargs",
}
_HARMLESS = {
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("parallel_tool_calls", "request_id", "rid", "session_id", "cache_salt"),
}
"""Fields that do not change the answer: accounting, caching, and how to call tools, of which there are none."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    # Fields beyond OpenAI's that clients of vLLM and SGLang send, with the values that mean "not set".
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "stop_regex": ([], ""),
    "bad_words": ([],),
    "min_tokens": (0,),
    "min_new_tokens": (0,),
    "best_of": (1,),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "no_stop_trim": (False,),
    "echo": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "add_special_tokens": (False,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "return_hidden_states": (False,),
    "separate_reasoning": (False,),
    "include_reasoning": (True,),
    "documents": ([],),
    "mm_processor_kwargs": ({},),
    "media_io_kwargs": ({},),
    "priority": (0,),
}
"""Fields that this server does not support, with the values that mean "not set"."""


@dataclasses.dataclass(frozen=True, eq=False)
class ChatRequest:
    """A checked request; `messages` have transformers' format, `images` are the files of all messages in order."""

    messages: list[dict[str, Any]]
    images: list[bytes]
    num_samples: int
    sampling: Sampling
    seed: int | None
    max_new_tokens: int
    stops: tuple[str, ...]
    logprobs: bool
    stream: bool
    include_usage: bool
    enable_thinking: bool | None


def read(content: bytes, model: str, max_new_tokens: int, limits: PromptLimits) -> ChatRequest:
    """Reads the request in a body, for a server with this model, most new tokens and limits on prompts. Takes time in
    proportion to the body, so it is called outside the event loop. Raises ApiError."""
    body = _parsed(content, limits)
    body = {name: value for name, value in body.items() if value is not None}
    _refuse_unknown(body)
    _check_model(body.get("model"), model)
    read_messages, images = messages.read(body.get("messages"), limits)
    stream = _boolean(body, "stream")
    options, template = _object(body, "stream_options"), _object(body, "chat_template_kwargs")
    _only(options, ("include_usage", "include_obfuscation"), "stream_options")
    _only(template, ("enable_thinking",), "chat_template_kwargs")
    if options and not stream:
        raise ApiError("stream_options needs stream=true", param="stream_options")
    if _number(body, "top_logprobs", 0, 0, 20, whole=True) > 0:
        raise ApiError("top_logprobs must be 0: only sampled tokens have log-probabilities", param="top_logprobs")
    return ChatRequest(
        messages=read_messages,
        images=images,
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


def _parsed(content: bytes, limits: PromptLimits) -> dict[str, Any]:
    """Parses the JSON object of a body. Brackets, which take long to parse, are counted first: Python parses a string
    of 20 MB in a twentieth of a second, and as many brackets in ten seconds, with its lock held."""
    marks = sum(content.count(mark) for mark in (b"[", b"{", b","))
    if marks > limits.marks:
        raise ApiError(f"the body holds {marks} brackets and commas, and the limit is {limits.marks}", 413)
    if (escapes := content.count(b"\\")) > limits.max_escapes(len(content)):
        raise ApiError(f"the body holds {escapes} backslashes, more than the longest prompt", 413)
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise ApiError("the body must be a JSON object")
    return body


def _refuse_unknown(body: Mapping[str, Any]) -> None:
    for name, value in body.items():
        if name in _NEUTRAL:
            if not any(_same(value, neutral) for neutral in _NEUTRAL[name]):
                raise ApiError(f"{name} is not supported: leave it out", param=name, code="unsupported_parameter")
        elif name not in _READ | _HARMLESS:
            known = ", ".join(sorted(_READ))
            raise ApiError(
                f"{shortened(name)} is not known: leave it out; known are {known}", param=name, code="unknown_parameter"
            )


def _same(value: Any, neutral: Any) -> bool:
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _check_model(requested: Any, served: str) -> None:
    if requested is not None and requested != served:
        shown = repr(shortened(requested)) if isinstance(requested, str) else "that is not a string"
        message = f"there is no model {shown}: this server has {served!r} (--served_model_name names it)"
        raise ApiError(message, 404, param="model", code="model_not_found")


def _sampling(body: Mapping[str, Any]) -> Sampling:
    top_k = _number(body, "top_k", 0, -1, 2**31 - 1, whole=True)
    temperature = _number(body, "temperature", 1.0, 0, 100)
    return Sampling(
        temperature=max(temperature, _LOWEST_TEMPERATURE) if temperature > 0 else 0.0,
        top_k=max(top_k, 0),  # -1 means off in vLLM
        top_p=max(_number(body, "top_p", 1.0, 0, 1), _LOWEST_TOP_P),
        min_p=_number(body, "min_p", 0.0, 0, 0.999999),
        repetition_penalty=_number(body, "repetition_penalty", 1.0, 0.01, 100),
        presence_penalty=_number(body, "presence_penalty", 0.0, -2, 2),
    )


def _max_new_tokens(body: Mapping[str, Any], limit: int) -> int:
    name = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
    wanted = _number(body, name, limit, 1, 2**31 - 1, whole=True)
    if wanted > limit:
        raise ApiError(f"{name}={wanted} exceeds this server's limit of {limit} (--max_new_tokens)", param=name)
    return wanted


def _stops(stop: Any) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(one, str) and one for one in stops):
        raise ApiError("stop must be a string or a list of strings, none of them empty", param="stop")
    if len(stops) > MAX_STOPS or any(len(one) > MAX_STOP_LENGTH for one in stops):
        raise ApiError(f"stop holds at most {MAX_STOPS} strings of at most {MAX_STOP_LENGTH} characters", param="stop")
    return tuple(dict.fromkeys(stops))


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
            raise ApiError(f"{where}.{shortened(name)} is not known: leave it out", param=where)
