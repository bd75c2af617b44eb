"""Hostile clients against a live server: their requests are counted, bounded in time, and keep no other client out."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import pytest

from tests.serve import hostile
from tests.serve.conftest import Live, data_uri, listening, until
from zppo_jax.rollout.session import Session
from zppo_jax.serve import connections, protocol
from zppo_jax.serve.errors import ApiError
from zppo_jax.serve.images import ImageDecoder, content_of
from zppo_jax.serve.limits import Limits
from zppo_jax.serve.scheduler import Scheduler

openai = pytest.importorskip("openai")


def seconds_of(work: Any) -> float:
    begin = time.monotonic()
    work()
    return time.monotonic() - begin


# ---------------------------------------------------------------- bodies, deadlines, connections


@contextlib.contextmanager
def impatient(live: Live, seconds: float = 1.5, **fields: Any) -> Iterator[int]:
    """A server with a short deadline for requests; yields its port."""
    server = dataclasses.replace(live.server, limits=Limits(400_000, 2, seconds), **fields)
    with listening(server) as port:
        yield port
    server.reader.close()


def test_half_sent_bodies_have_a_deadline_and_keep_nobody_out(live):
    """Twice as many as there is room for; a short question is answered during that, and a large one afterwards."""
    with impatient(live) as port, contextlib.ExitStack() as stack:
        held = [stack.enter_context(hostile.half_sent(port, 399_000, 300_000)) for _ in range(16)]
        assert hostile.status_of(port, hostile.asking("a")) == 200
        assert hostile.status_of(port, hostile.asking("a") + b" " * 390_000) in (
            200,
            503,
        )  # it waits for their deadline
        for connection in held:
            answer = connection.recv(1000)
            assert answer.startswith((b"HTTP/1.1 408", b"HTTP/1.1 503")), answer
        assert hostile.status_of(port, hostile.asking("a") + b" " * 390_000) == 200


def test_room_for_bodies_is_given_back(live):
    """Also by clients that disconnect in the middle."""
    with impatient(live) as port:
        for _ in range(20):
            hostile.half_sent(port, 399_000, 100_000).close()
        assert hostile.status_of(port, hostile.asking("a") + b" " * 390_000) == 200


def test_a_body_that_is_too_long_is_answered_and_not_reset(live):
    """All of it is sent before the answer is read, as most clients do; four times as much as the sockets hold."""
    for header in ("Content-Length: 20000000", "Transfer-Encoding: chunked"):
        with socket.create_connection(("127.0.0.1", live.port), timeout=30) as connection:
            connection.sendall(f"{hostile.HEAD}{header}\r\n\r\n".encode())
            chunk = b"a" * 1_000_000
            is_chunked = "chunked" in header
            for _ in range(20):
                connection.sendall(b"f4240\r\n" + chunk + b"\r\n" if is_chunked else chunk)
            connection.sendall(b"0\r\n\r\n" * is_chunked)
            assert connection.recv(1000).startswith(b"HTTP/1.1 413")
            # The connection has been read to the end of the request, and may be used again.
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            until(lambda connection=connection: b"HTTP/1.1 200" in connection.recv(4000))


def test_a_refused_key_is_answered_and_not_reset(live):
    with listening(dataclasses.replace(live.server, api_key="s3cret")) as port:
        assert hostile.status_of(port, b"a" * 20_000_000) == 401


def test_the_loop_parses_nothing(live, monkeypatch):
    threads, parse = [], protocol.read

    def watched(*arguments: Any) -> Any:
        threads.append(threading.current_thread().name)
        return parse(*arguments)

    monkeypatch.setattr(protocol, "read", watched)
    assert hostile.status_of(live.port, hostile.asking("a")) == 200
    assert hostile.status_of(live.port, hostile.asking("a") + b" " * 100_000) == 200
    assert [name.rpartition("_")[0] for name in threads] == ["small", "large"]


@pytest.fixture
def few_connections(monkeypatch):
    monkeypatch.setattr(connections, "_MOST_CONNECTIONS", 20)
    monkeypatch.setattr(connections, "_HEAD_SECONDS", 1.0)


def test_idle_connections_keep_nobody_out(live, few_connections):
    """Three times as many as the limit; a request in progress is not closed to make room."""
    with (
        listening(live.server) as port,
        contextlib.ExitStack() as stack,
        ThreadPoolExecutor(1) as threads,
        live.gate.held() as gate,
    ):
        asked = threads.submit(hostile.status_of, port, hostile.asking("a"))
        until(lambda: live.server.scheduler.num_responses == 1)
        for _ in range(60):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        assert seconds_of(lambda: hostile.status_of(port, None, "/health")) < 0.5
        gate.permit(1000)
        assert asked.result() == 200


def test_a_head_that_trickles_in_is_given_up(live, few_connections):
    with listening(live.server) as port, socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        begin = time.monotonic()
        with contextlib.suppress(OSError):
            for letter in hostile.HEAD.encode() * 10:
                connection.sendall(bytes([letter]))
                connection.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    if connection.recv(1) == b"":
                        break
        assert 0.8 < time.monotonic() - begin < 5


def test_each_head_of_a_connection_has_its_time(live, few_connections):
    """A connection that is used for longer than one head may take."""
    with listening(live.server) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        for _ in range(3):
            connection.request("GET", "/health")
            assert connection.getresponse().read()
            time.sleep(0.6)
        connection.close()


# ---------------------------------------------------------------- images


def test_slow_images_hold_no_text(live):
    """Two that take both children: texts are answered during that, and both are refused in time."""
    decoder, slow = ImageDecoder(16_777_216, seconds=0.5), hostile.showing(hostile.slow_jpeg())
    with impatient(live, 20.0, decoder=decoder) as port, ThreadPoolExecutor(4) as threads:
        images = [threads.submit(hostile.status_of, port, slow) for _ in range(2)]
        until(lambda: decoder._places.qsize() == 0)
        assert hostile.status_of(port, hostile.asking("a")) == 200
        assert not any(image.done() for image in images)
        assert all(image.result() in (400, 503) for image in images)  # the image's limit, or the request's
    decoder.close()


def test_the_processor_time_of_an_image_is_limited():
    decoder = ImageDecoder(16_777_216, num_workers=1, seconds=1.0)
    assert decoder.decode(small_image(), "x").shape == (4, 4, 3)
    with pytest.raises(ApiError, match="x: cannot be decoded within 1 seconds"):
        decoder.decode(hostile.slow_jpeg(num_scans=20_000), "x")
    assert decoder.decode(small_image(), "x").shape == (4, 4, 3)
    decoder.close()


def test_one_deadline_holds_for_all_images_and_the_wait(live):
    """Two images in a request, each within the limit of one; the request is refused at its own deadline."""
    del live
    decoder = ImageDecoder(16_777_216, num_workers=1, seconds=60.0)
    decoder.decode(small_image(), "x")
    begin = time.monotonic()
    with pytest.raises(ApiError, match="in time") as caught:
        decoder.decode(hostile.slow_jpeg(num_scans=20_000), "x", begin + 1.0)
    assert caught.value.status == 503 and caught.value.headers["Retry-After"]
    assert time.monotonic() - begin < 3
    decoder.close()


def test_a_dead_child_costs_no_image(live):
    del live
    decoder = ImageDecoder(10_000, num_workers=1)
    assert decoder.decode(small_image(), "x").shape == (4, 4, 3)
    child = decoder._places.get()
    decoder._places.put(child)
    assert child is not None
    os.kill(child._process.pid, 9)
    assert decoder.decode(small_image(), "x").shape == (4, 4, 3)
    decoder.close()


def small_image() -> bytes:
    return content_of(data_uri(np.zeros((4, 4, 3), np.uint8)), "x")


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("stream", [True, False])
def test_a_model_that_computes_no_numbers_is_an_error_of_the_server(live, stream):
    params = jax.tree.map(lambda weight: weight * jax.numpy.nan, live.loaded.params)
    scheduler = Scheduler(lambda: Session(live.engine, params), 6)
    with listening(dataclasses.replace(live.server, scheduler=scheduler)) as port:
        spoilt = dataclasses.replace(live, port=port)
        ask = spoilt.client().chat.completions.create
        with pytest.raises(openai.APIError, match="response 0: the log-probability of token 1 is nan"):
            list(ask(model="tiny", messages=[{"role": "user", "content": "a"}], stream=stream))
    until(lambda: scheduler.num_responses == 0)
    scheduler.close()
