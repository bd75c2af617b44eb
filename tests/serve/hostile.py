"""Requests of hostile clients; used by the tests and by `under_attack`."""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket

import numpy as np
from PIL import Image

HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


def slow_jpeg(side: int = 4000, num_scans: int = 2500) -> bytes:
    """A progressive JPEG with a scan repeated many times: each costs a pass over all its blocks."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((side, side), np.uint8)).save(file, "jpeg", progressive=True)
    content = file.getvalue()
    starts = [place for place in range(len(content) - 1) if content[place : place + 2] == b"\xff\xda"]
    scan = content[starts[1] : starts[2]]
    return content[: starts[2]] + (num_scans - len(starts)) * scan + content[starts[2] :]


def asking(content: object, **fields: object) -> bytes:
    """The body of a request of one message."""
    return json.dumps({"messages": [{"role": "user", "content": content}], "max_tokens": 4} | fields).encode()


def showing(file: bytes) -> bytes:
    """The body of a request with one image."""
    uri = f"data:image/jpeg;base64,{base64.b64encode(file).decode()}"
    return asking([{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "a"}])


def half_sent(port: int, num_bytes: int, sent: int) -> socket.socket:
    """A connection whose request of `num_bytes` stops after `sent` of them."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(f"{HEAD}Content-Length: {num_bytes}\r\n\r\n".encode() + b" " * sent)
    return connection


def status_of(port: int, body: bytes | None, path: str = "/v1/chat/completions", seconds: float = 60.0) -> int:
    """The status of a whole request; GET without a body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        connection.request("GET" if body is None else "POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()
