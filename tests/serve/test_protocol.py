"""Reading requests: fields that are used, ignored, and refused, with the messages."""

from __future__ import annotations

import json
from typing import Any

import pytest

from zppo_jax.rollout.filters import Sampling
from zppo_jax.serve import protocol
from zppo_jax.serve.errors import ApiError
from zppo_jax.serve.limits import PromptLimits

USER = {"role": "user", "content": "a"}
LIMITS = PromptLimits(tokens=100, characters=2000, images=2)


def read(**fields: Any) -> protocol.ChatRequest:
    return protocol.read(json.dumps({"messages": [USER]} | fields).encode(), "m", 100, LIMITS)


def refusal(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(**fields)
    return caught.value


def test_defaults():
    chat = read()
    assert chat.messages == [USER] and chat.images == [] and chat.sampling == Sampling()
    assert (chat.num_samples, chat.seed, chat.max_new_tokens, chat.stops) == (1, None, 100, ())
    assert not (chat.logprobs or chat.stream or chat.include_usage) and chat.enable_thinking is None


def test_every_field():
    settings: dict[str, Any] = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1}
    penalties: dict[str, Any] = {"presence_penalty": 1.5, "repetition_penalty": 1.2}
    chat = read(
        **settings, **penalties, model="m", n=3, seed=-4, max_tokens=50, max_completion_tokens=60, stop=["x", "y", "x"],
        logprobs=True, top_logprobs=0, stream=True, stream_options={"include_usage": True},
        chat_template_kwargs={"enable_thinking": False},
    )  # fmt: skip
    assert chat.sampling == Sampling(**settings, **penalties)
    assert (chat.num_samples, chat.seed, chat.max_new_tokens, chat.stops) == (3, -4, 60, ("x", "y"))
    assert chat.logprobs and chat.stream and chat.include_usage and chat.enable_thinking is False


def test_a_nucleus_of_nothing_is_the_likeliest_token():
    """OpenAI accepts 0, and lmms-eval's POPE and MathVerse send it."""
    assert 0 < read(top_p=0).sampling.top_p == read(top_p=0.0).sampling.top_p <= 1e-6


def test_what_asks_for_nothing_is_ignored():
    chat = read(
        user="u", metadata={"a": "b"}, store=True, seed=None, stop=None, top_k=-1, tools=[], tool_choice="auto",
        response_format={"type": "text"}, logit_bias={}, frequency_penalty=0, temperature=None,
    )  # fmt: skip
    assert chat.sampling == Sampling() and chat.seed is None and chat.stops == ()


NEUTRAL = {
    "ignore_eos": False, "stop_token_ids": [], "skip_special_tokens": True, "min_tokens": 0, "echo": False,
    "add_generation_prompt": True, "continue_final_message": False, "add_special_tokens": False, "best_of": 1,
    "spaces_between_special_tokens": True, "include_stop_str_in_output": False, "length_penalty": 1.0, "bad_words": [],
    "use_beam_search": False, "no_stop_trim": False, "include_reasoning": True, "priority": 0,
}  # fmt: skip


def test_what_clients_of_other_servers_send_by_themselves_is_taken():
    chat = read(**NEUTRAL, request_id="r", truncate_prompt_tokens=None, prompt_logprobs=None, guided_json=None)
    assert chat.sampling == Sampling() and chat.messages == [USER]


@pytest.mark.parametrize(("name", "value"), NEUTRAL.items())
def test_the_same_fields_are_refused_where_they_ask_for_something(name, value):
    other = [7] if isinstance(value, list) else not value if isinstance(value, bool) else value + 1
    for one in (other, 0 if value is False else "x"):
        error = refusal(**{name: one})
        assert error.param == name and error.code == "unsupported_parameter"


def test_a_temperature_near_zero_is_raised():
    """To 0.01, as vLLM does; 0 itself is greedy."""
    assert read(temperature=1e-6).sampling.temperature == read(temperature=0.01).sampling.temperature == 0.01
    assert read(temperature=1e-300).sampling.temperature == 0.01 and read(temperature=0).sampling.temperature == 0
    assert read(temperature=0.011).sampling.temperature == 0.011


def test_messages_become_those_of_transformers():
    parts = [{"type": "text", "text": "b"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,QQ=="}}]
    chat = read(
        messages=[
            {"role": "developer", "content": "s"},
            {"role": "user", "content": parts, "name": "x"},
            {"role": "assistant", "content": None, "reasoning_content": "r"},
            {"role": "user", "content": [{"type": "image_url", "image_url": "data:image/png;base64,Qg=="}]},
        ]
    )
    assert chat.messages == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "image"}]},
        {"role": "assistant", "content": "", "reasoning_content": "r"},
        {"role": "user", "content": [{"type": "image"}]},
    ]
    assert chat.images == [b"A", b"B"]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"n": 0}, "n", "a whole number from 1 to 128"),
        ({"n": 129}, "n", "from 1 to 128"),
        ({"n": True}, "n", "whole number"),
        ({"n": 1.0}, "n", "whole number"),
        ({"temperature": -1}, "temperature", "from 0"),
        ({"temperature": float("nan")}, "temperature", "from 0"),
        ({"temperature": "1"}, "temperature", "a number"),
        ({"top_p": -0.1}, "top_p", "from 0 to 1"),
        ({"top_p": 1.1}, "top_p", "from 0 to 1"),
        ({"min_p": 1}, "min_p", "from 0"),
        ({"presence_penalty": 3}, "presence_penalty", "from -2 to 2"),
        ({"repetition_penalty": 0}, "repetition_penalty", "number from"),
        ({"max_tokens": 0}, "max_tokens", "from 1"),
        ({"max_tokens": 101}, "max_tokens", "limit of 100"),
        ({"max_completion_tokens": 101}, "max_completion_tokens", "limit of 100"),
        ({"stop": ""}, "stop", "none of them empty"),
        ({"stop": [1]}, "stop", "strings"),
        ({"stop": ["x"] * 17}, "stop", "at most 16"),
        ({"stop": "x" * 501}, "stop", "at most 500"),
        ({"seed": 2**63}, "seed", "whole number"),
        ({"logprobs": 1}, "logprobs", "true or false"),
        ({"top_logprobs": 1, "logprobs": True}, "top_logprobs", "only sampled tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream=true"),
        ({"stream": True, "stream_options": {"a": 1}}, "stream_options", "not known"),
        ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs", "not known"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs", "an object"),
        ({"tools": [1]}, "tools", "not supported"),
        ({"tool_choice": "required"}, "tool_choice", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"logit_bias": {"1": 1}}, "logit_bias", "not supported"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "not supported"),
        ({"guided_regex": "a"}, "guided_regex", "not known"),
        ({"messages": []}, "messages", "at least one"),
        ({"messages": "a"}, "messages", "a list"),
        ({"messages": ["a"]}, "messages[0]", "role"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0]", "role must be one of"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, "messages[0]", "role must be one of"),
        ({"messages": [{"role": "user"}]}, "messages[0]", "a string or a list"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0]", "a string or a list"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [1]}]}, "messages[1]", "tool_calls"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "messages[0].content[0]", "must be"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages[0].content[0]", "must be"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "messages[0].content[0]", "must"),
        ({"messages": [{"role": "system", "content": [{"type": "image_url", "image_url": "a"}]}]}, "messages[0]", "im"),
    ],
)
def test_refusals_name_the_field(fields, param, words):
    error = refusal(**fields)
    assert error.status == 400 and error.param == param and words in error.message
    assert error.body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"n": ' + b"9" * 5000 + b"}"])
def test_no_json_object(body):
    with pytest.raises(ApiError, match="the body"):
        protocol.read(body, "m", 100, LIMITS)


def test_another_model():
    error = refusal(model="other")
    assert error.status == 404 and error.code == "model_not_found"
