"""The openai client against a live server with the shipped student."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import math
import re
import signal
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests import runs
from tests.serve.conftest import MODEL, QUESTION, STUDENT, Live, data_uri, listening, until
from zppo_jax.data.digits import DigitsSource
from zppo_jax.keys import RandomStream
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.requests import Request
from zppo_jax.rollout.session import Session

openai = pytest.importorskip("openai")


def ask(live: Live, content: Any = QUESTION, **settings: Any) -> Any:
    messages = settings.pop("messages", [{"role": "user", "content": content}])
    return live.client().chat.completions.create(model=MODEL, messages=messages, **settings)


def texts(completion: Any) -> list[str]:
    assert [choice.index for choice in completion.choices] == list(range(len(completion.choices)))
    return [choice.message.content for choice in completion.choices]


def streamed(live: Live, **settings: Any) -> tuple[list[str], list[Any], list[Any]]:
    """Texts and reasons by choice, and all chunks."""
    said, reasons, chunks = {}, {}, []
    for chunk in ask(live, stream=True, **settings):
        chunks.append(chunk)
        for choice in chunk.choices:
            said[choice.index] = said.get(choice.index, "") + (choice.delta.content or "")
            reasons[choice.index] = choice.finish_reason
    order = sorted(said)
    return [said[index] for index in order], [reasons[index] for index in order], chunks


def post(port: int, body: bytes, path: str = "/v1/chat/completions", method: str = "POST", **headers: str) -> Any:
    """Status, headers and JSON of a raw request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    named = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, named)
    with contextlib.closing(connection), connection.getresponse() as response:
        return response.status, dict(response.getheaders()), json.loads(response.read())


def locally(live: Live, features: Any, seed: int, num_samples: int, **settings: Any) -> list[Any]:
    """The samples of a separate session."""
    session = Session(live.engine, live.loaded.params)
    session.submit(Request("chat", features, num_samples, Sampling(**settings), RandomStream(seed)))
    found = {}
    while session.busy:
        found |= {event.index: event.sample for event in session.advance() if event.sample is not None}
    return [found[index] for index in range(num_samples)]


def test_a_chat_is_what_the_engine_samples(live):
    completion = ask(live, n=3, seed=5, logprobs=True, top_logprobs=0)
    features = live.loaded.processor.features(QUESTION, [])
    samples = locally(live, features, 5, 3)
    assert texts(completion) == [live.loaded.processor.decode(sample.token_ids_T) for sample in samples]
    assert len(set(texts(completion))) > 1
    assert completion.usage.prompt_tokens == features.num_tokens
    assert completion.usage.completion_tokens == sum(len(sample.token_ids_T) for sample in samples)
    for choice, sample in zip(completion.choices, samples, strict=True):
        assert choice.finish_reason == sample.finish_reason == "stop"
        entries = choice.logprobs.content
        assert bytes(byte for entry in entries for byte in entry.bytes).decode() == choice.message.content
        assert "".join(entry.token for entry in entries) == choice.message.content
        # The stop token itself has no text.
        assert [entry.logprob for entry in entries] == pytest.approx(sample.logprobs_T[:-1].tolist(), abs=1e-4)


def test_a_stream_says_the_same(live):
    settings = {"n": 3, "seed": 6, "logprobs": True, "max_tokens": 9}
    whole = ask(live, **settings)
    said, reasons, chunks = streamed(live, stream_options={"include_usage": True}, **settings)
    assert said == texts(whole)
    assert reasons == [choice.finish_reason for choice in whole.choices] and "length" in reasons
    assert chunks[-1].usage == whole.usage and chunks[-1].choices == []
    assert len({chunk.id for chunk in chunks}) == 1
    for choice in whole.choices:
        parts = [one.logprobs for chunk in chunks for one in chunk.choices if one.index == choice.index]
        entries = [entry for part in parts if part for entry in part.content]
        assert [entry.bytes for entry in entries] == [entry.bytes for entry in choice.logprobs.content]
        # Not equal: keys are elsewhere in the ring of the cache, so sums have another order.
        expected = [entry.logprob for entry in choice.logprobs.content]
        assert [entry.logprob for entry in entries] == pytest.approx(expected, abs=1e-4)


def test_greedy_and_truncated_and_penalised(live):
    [greedy] = texts(ask(live, temperature=0))
    assert texts(ask(live, extra_body={"top_k": 1})) == [greedy] == texts(ask(live, top_p=0))
    assert texts(ask(live, extra_body={"min_p": 0.999})) == [greedy]
    assert texts(ask(live, temperature=0, extra_body={"repetition_penalty": 50.0})) != [greedy]
    settings = {"temperature": 0.0, "presence_penalty": 2.0}
    features = live.loaded.processor.features(QUESTION, [])
    [sample] = locally(live, features, 0, 1, **settings)
    assert texts(ask(live, **settings)) == [live.loaded.processor.decode(sample.token_ids_T)]


@pytest.mark.parametrize("stop", ["</think>", ["unsaid", "\n\n\\box"], "k>"])
def test_stop_strings_are_not_in_the_output(live, stop):
    [whole] = texts(ask(live, temperature=0))
    completion = ask(live, temperature=0, stop=stop, logprobs=True)
    said = stop if isinstance(stop, str) else stop[1]
    assert said in whole and texts(completion) == [whole[: whole.index(said)]]
    assert completion.choices[0].finish_reason == "stop"
    assert streamed(live, temperature=0, stop=stop, logprobs=True)[:2] == (texts(completion), ["stop"])


def test_an_image_as_a_data_uri(live):
    question = DigitsSource("rules", "test", 4, 0)[1]
    [image] = question.images
    parts = [
        {"type": "image_url", "image_url": {"url": data_uri(image), "detail": "high"}},
        {"type": "text", "text": question.text},
    ]
    completion = ask(live, parts, temperature=0)
    features = live.loaded.processor.features(question.text, [image])
    [sample] = locally(live, features, 0, 1, temperature=0.0)
    assert texts(completion) == [live.loaded.processor.decode(sample.token_ids_T)]
    assert completion.usage.prompt_tokens == features.num_tokens


def test_a_prompt_without_images_does_not_run_the_vision_tower(live):
    before = live.engine.kept.features.encoded
    ask(live, "nothing to see", max_tokens=1)
    assert live.engine.kept.features.encoded == before > 0


def test_what_has_ended_is_forgotten(live):
    ask(live, n=2)
    until(lambda: not live.server.scheduler._pending)
    session = live.gate.sessions[-1]
    assert session._requests == {} and session._buckets == {}


def test_a_conversation_and_thinking(live):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": "hm</think>b"},
        {"role": "user", "content": "c"},
    ]
    for thinking in (True, False):
        features = live.loaded.processor.chat_features(messages, (), thinking)
        kwargs = {"chat_template_kwargs": {"enable_thinking": thinking}}
        completion = ask(live, messages=messages, seed=3, max_tokens=8, extra_body=kwargs)
        [sample] = locally(live, features, 3, 1)
        assert texts(completion) == [live.loaded.processor.decode(sample.token_ids_T[:8])]


def test_requests_at_once_are_not_mixed_up(live):
    questions = [f"Add {number}. Answer in \\boxed{{}}." for number in range(3)]
    settings = [{"seed": number, "n": 2, "max_tokens": 12 + number} for number in range(3)]
    alone = [texts(ask(live, question, **one)) for question, one in zip(questions, settings, strict=True)]
    with ThreadPoolExecutor(3) as threads:
        for _ in range(3):
            together = threads.map(lambda place: texts(ask(live, questions[place], **settings[place])), range(3))
            assert list(together) == alone


def test_models_and_health(live):
    client = live.client()
    assert [model.id for model in client.models.list()] == [MODEL] and client.models.retrieve(MODEL).id == MODEL
    status, _, health = post(live.port, b"", "/health", "GET")
    assert (status, health["status"]) == (200, "ok")
    with pytest.raises(openai.NotFoundError, match="there is no such model"):
        client.models.retrieve("other")


# ---------------------------------------------------------------- refusals


def test_errors_have_the_form_of_openai(live):
    with pytest.raises(openai.BadRequestError, match="tools is not supported") as caught:
        ask(live, tools=[{"type": "function", "function": {"name": "f"}}])
    assert caught.value.param == "tools" and caught.value.code == "unsupported_parameter"
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        live.client().chat.completions.create(model="other", messages=[{"role": "user", "content": "a"}])
    with pytest.raises(openai.BadRequestError, match="max_tokens=65 exceeds this server's limit of 64"):
        ask(live, max_tokens=65)
    with pytest.raises(openai.BadRequestError) as caught:
        ask(live, "word " * 200)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="characters, more than"):
        ask(live, "a" * 100_000)
    assert ask(live, user="somebody", metadata={"a": "b"}, max_tokens=1).choices[0].finish_reason == "length"
    for path, method, status in (("/v1/completions", "POST", 404), ("/v1/chat/completions", "GET", 405)):
        found, _, body = post(live.port, b"{}", path, method)
        assert found == status and "/v1/chat/completions" in body["error"]["message"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1/a.png", "give a data URI"),
        ("data:image/png;base64,????", "not base64"),
        ("data:image/png;base64,aGVsbG8=", "not an image"),
        (data_uri(np.zeros((101, 100, 3), np.uint8)), "100 x 101 pixels exceed the limit of 10000"),
        (data_uri(np.zeros((1, 400, 3), np.uint8)), "aspect ratio"),
        (data_uri(np.zeros((64, 64, 3), np.uint8))[:-60], "cannot be decoded|not base64"),
    ],
)
def test_unfit_images_are_refused(live, url, words):
    with pytest.raises(openai.BadRequestError, match=words):
        ask(live, [{"type": "image_url", "image_url": {"url": url}}])


def test_too_many_images(live):
    part = {"type": "image_url", "image_url": {"url": data_uri(np.zeros((32, 32, 3), np.uint8))}}
    with pytest.raises(openai.BadRequestError, match="3 images, and the limit is 2"):
        ask(live, [part] * 3)
    assert ask(live, [part] * 2, max_tokens=1).usage.completion_tokens == 1


def test_a_large_body_is_refused_before_it_is_read(live):
    with pytest.raises(openai.APIStatusError, match="exceeds 200000 bytes") as caught:
        ask(live, "a" * 250_000)
    assert caught.value.status_code == 413
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=20)
    parts = (b"a" * 10_000 for _ in range(21))  # in chunks, without a length
    connection.request("POST", "/v1/chat/completions", parts, {"Content-Type": "application/json"})
    with contextlib.closing(connection):
        assert connection.getresponse().status == 413


def test_only_json_is_read(live):
    assert post(live.port, b"{}", Content_Type="text/plain")[0] == 415
    status, _, body = post(live.port, b'{"messages": [')
    assert status == 400 and "not JSON" in body["error"]["message"]


def test_a_key_is_needed_where_one_is_set(live):
    with listening(dataclasses.replace(live.server, api_key="s3cret")) as port:
        locked = dataclasses.replace(live, port=port)
        for key in ("wrong", "s3cret0", "clé"):
            status, headers, body = post(port, b"{}", Authorization=f"Bearer {key}".encode().decode("latin-1"))
            assert status == 401 and body["error"]["code"] == "invalid_api_key"
            assert {name.lower() for name in headers} >= {"www-authenticate"}
        with pytest.raises(openai.AuthenticationError):
            locked.client(api_key="wrong").models.list()
        assert post(port, b"{}")[0] == 401 and post(port, b"", "/health", "GET")[0] == 200
        assert [model.id for model in locked.client(api_key="s3cret").models.list()] == [MODEL]
    with listening(dataclasses.replace(live.server, api_key="clé")) as port:
        assert post(port, b"", "/v1/models", "GET", Authorization="Bearer clé".encode().decode("latin-1"))[0] == 200


# ---------------------------------------------------------------- load, and clients that go


def test_a_full_queue_says_when_to_come_back(live):
    with ThreadPoolExecutor(1) as threads, live.gate.held() as gate:
        first = threads.submit(ask, live, n=4)
        until(lambda: live.server.scheduler.num_responses == 4)
        with pytest.raises(openai.RateLimitError, match="4 responses are waiting or running") as caught:
            ask(live, n=3)
        assert int(caught.value.response.headers["retry-after"]) >= 1
        with pytest.raises(openai.BadRequestError, match="n=7 exceeds the 6"):
            ask(live, n=7)
        gate.permit(math.inf)
        assert len(first.result().choices) == 4
    assert len(ask(live, n=6).choices) == 6
    until(lambda: live.server.scheduler.num_responses == 0)


def seed_of_long_responses(live: Live, text: str, num_samples: int, temperature: float) -> int:
    """A seed with which no response samples a stop token."""
    features = live.loaded.processor.features(text, [])
    for seed in range(100):
        samples = locally(live, features, seed, num_samples, temperature=temperature)
        if all(sample.finish_reason == "length" for sample in samples):
            return seed
    raise AssertionError("every seed has a response that stops")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_frees_its_slots(live, stream):
    scheduler = live.server.scheduler
    assert texts(ask(live, temperature=0))
    done = live.gate.sessions[-1].counters.finished
    body = {"messages": [{"role": "user", "content": "a"}], "n": 6, "temperature": 100, "stream": stream}
    body["seed"] = seed_of_long_responses(live, "a", 6, 100.0)
    with live.gate.held() as gate:
        connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=20)
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        until(lambda: scheduler.num_responses == 6)
        gate.permit(2)  # four are in slots, and two wait
        until(lambda: gate.arrived == 3)  # so that the engine is held when the client disconnects
        assert scheduler.num_busy_slots == 4
        assert connection.sock is not None
        connection.sock.close()
        connection.close()
        until(lambda: scheduler._commands.qsize() > 0)
    until(lambda: scheduler.num_responses == 0 and scheduler.num_busy_slots == 0)
    assert live.gate.sessions[-1].counters.finished == done
    assert texts(ask(live, temperature=0))


def test_an_error_of_the_engine_does_not_end_the_server(live):
    live.gate.error = RuntimeError("out of memory, say")
    with pytest.raises(openai.InternalServerError, match="the engine failed"):
        ask(live, n=2)
    assert texts(ask(live, temperature=0)) and live.server.scheduler.num_responses == 0


def test_an_idle_engine_sleeps(live):
    until(lambda: live.server.scheduler.num_responses == 0)
    time.sleep(0.2)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.25


# ---------------------------------------------------------------- the real process


def test_the_process_serves_until_ctrl_c(live):
    """With the sizes of the other tests' server, so that nothing is compiled again."""
    del live
    sizes = ("--num_slots=4", "--max_prompt_tokens=128", "--max_new_tokens=64", "--max_images=2", "--max_queue=9")
    process = subprocess.Popen(
        [sys.executable, "-m", "zppo_jax.serve", f"--model={STUDENT}", "--port=0", *sizes],
        cwd=runs.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    address = next(found[1] for line in process.stdout if (found := re.search(r"serving student on (\S+)/v1", line)))
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(f"{address}/v1/models", timeout=20) as response:
        assert json.load(response)["data"][0]["id"] == "student"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0 and err == "", err
