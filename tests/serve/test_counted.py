"""The content of a request is counted before it is parsed or rendered, and both take time in proportion to it."""

from __future__ import annotations

import functools
import json
import threading
import time
from typing import Any

import numpy as np
import pytest

from tests.serve.conftest import data_uri
from zppo_jax.processor.chat import render_conversation
from zppo_jax.serve import protocol
from zppo_jax.serve.errors import ApiError
from zppo_jax.serve.limits import PromptLimits
from zppo_jax.warmstart import tiny

processor = functools.cache(tiny.processor)

LIMITS = PromptLimits(tokens=2049, characters=160_000, images=4)
"""The command's default limits: prompts of 2,048 tokens, none longer than 20 characters."""


def read(body: Any) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return protocol.read(content, "m", 100, LIMITS)


def seconds_of(work: Any) -> float:
    begin = time.monotonic()
    work()
    return time.monotonic() - begin


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([{"role": "user", "content": "a"}, {"role": "assistant", "reasoning_content": "a" * 4_000_000}], "characters"),
        ([{"role": "user", "content": "hi"}] * 2000, "2000 messages"),
        ([{"role": "user", "content": [{"type": "text", "text": ""}] * 4000}], "parts"),
        ([{"role": "user", "content": [{"type": "text", "text": "a" * 1000}] * 200}], "200000 characters"),
    ],
)
def test_what_a_template_would_write_is_counted_before(messages, words):
    with pytest.raises(ApiError, match=words) as caught:
        read({"messages": messages})
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": [' + b"[]," * 6_000_000 + b"[]]}",
        b'{"messages": [' + b"1," * 9_000_000 + b"1]}",
        b'{"a": ' + b'{"a":' * 3_000_000 + b"1}",
        b'{"messages": [' + b'"",' * 6_000_000 + b'""]}',
        b'{"a": "' + b"\\n" * 9_000_000 + b'"}',
    ],
    ids=["brackets", "commas", "nested", "strings", "escapes"],
)
def test_json_that_takes_long_to_parse_is_refused_before(body):
    def refused() -> None:
        with pytest.raises(ApiError, match="the body holds") as caught:
            read(body)
        assert caught.value.status == 413

    assert seconds_of(refused) < 0.5  # parsing takes seconds


def test_the_largest_prompts_that_fit_are_not_refused():
    """Texts with as many signs as tokens, and an image from a program that escapes each slash."""
    text = ", [x]{y}\\n" * 400
    uri = data_uri(np.random.default_rng(0).integers(0, 256, (500, 500, 3), np.uint8)).replace("/", "\\/")
    image = json.dumps({"type": "image_url", "image_url": {"url": "URI"}}).replace("URI", uri)
    parts = json.dumps([{"type": "text", "text": text}])[:-1] + f",{image}]"
    chat = read(f'{{"messages": [{{"role": "user", "content": {parts}}}]}}'.encode())
    assert chat.messages[0]["content"][0]["text"] == text and len(chat.images) == 1
    turns = [{"role": role, "content": "a"} for _ in range(250) for role in ("user", "assistant")]
    assert len(read({"messages": turns}).messages) == 500


def test_a_conversation_takes_time_in_proportion_to_its_messages():
    template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    encoder = processor()._encoder

    def encoded(number: int) -> None:
        messages = [{"role": "user", "content": "hi"}] * number
        conversation = render_conversation(template, messages, enable_thinking=True)
        assert encoder.encode(conversation.rendered, conversation.texts) == encoder.encode_text("hi " * number)

    encoded(10)
    few, many = (min(seconds_of(lambda number=number: encoded(number)) for _ in range(2)) for number in (1500, 12_000))
    assert many < 20 * few  # eight times the messages; a quadratic time would be 64 times


def test_other_threads_go_on_while_a_long_text_is_encoded():
    text, gaps, done = "word and another 12 " * 12_000, [], threading.Event()

    def count() -> None:
        last = time.monotonic()
        while not done.is_set():
            time.sleep(0.001)
            gaps.append(time.monotonic() - last)
            last = time.monotonic()

    thread = threading.Thread(target=count)
    thread.start()
    whole = seconds_of(lambda: processor().encode_text(text))
    done.set()
    thread.join()
    assert max(gaps) < whole / 2


@pytest.mark.parametrize("number", [1, 1000, 3000])
def test_a_long_text_has_the_same_ids(number):
    encoder, text = processor()._encoder, "Añb <|im_end|> 12\n\n e\u0301 \ue000 " * number
    assert encoder.encode_text(text) == encoder._text_tokenizer.encode(text, add_special_tokens=False).ids


def test_what_a_client_sends_is_not_echoed_whole():
    long = "x" * 10_000_000
    for body in ({"model": long}, {long: 1}, {"chat_template_kwargs": {long: 1}}, {"model": [long]}):
        with pytest.raises(ApiError) as caught:
            read({"messages": [{"role": "user", "content": "a"}]} | body)
        assert len(json.dumps(caught.value.body)) < 2000
