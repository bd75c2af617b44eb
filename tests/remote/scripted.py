"""An endpoint in a separate process, which answers as the name of the asked model says: well or badly.

    python -m tests.remote.scripted PORT LOG

Every request adds a line to LOG: the name of the model, the key, the body. LOG.names, if it exists, holds the names of
all models. A model's name is `kind` or `kind:detail`; the kinds are methods of the handler. `tests/judge/scripted.py`
and `tests/teacher/scripted.py` add kinds.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

GARBAGE = b"<html>\xff\xfe no JSON here"


def completion(*contents: str | None, model: str = "x", **more: Any) -> bytes:
    """A chat completion with a choice for each content."""
    choices = [
        {"index": index, "message": {"role": "assistant", "content": content} | more, "finish_reason": "stop"}
        for index, content in enumerate(contents)
    ]
    return json.dumps(
        {"id": "x", "object": "chat.completion", "created": 0, "model": model, "choices": choices}
    ).encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    counts: ClassVar[Counter[str]] = Counter()
    body: dict[str, Any]
    log: Path
    lock = threading.Lock()

    def do_GET(self) -> None:
        file = self.log.with_suffix(".names")
        if not file.exists():
            return self.reply(b"{}", 404)
        names = file.read_text().split()
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "tests"} for name in names]
        self.reply(json.dumps({"object": "list", "data": models}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.lock:
            self.counts[body["model"]] += 1
            with self.log.open("a") as log:
                row = {"model": body["model"], "key": self.headers["authorization"], "body": body}
                row |= {"headers": sorted(name.lower() for name in self.headers)}
                log.write(json.dumps(row | {"time": time.time()}) + "\n")
        self.body = body
        kind, _, detail = body["model"].partition(":")
        self.answer(kind, detail, body)

    def answer(self, kind: str, detail: str, body: dict[str, Any]) -> None:
        """Answers a request to the model `kind:detail`."""
        getattr(self, kind)(*filter(None, [detail]))

    def good(self) -> bytes:
        """The reply that a broken kind cuts off."""
        return completion("good", model=self.body["model"])

    def reply(self, content: bytes, status: int = 200, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    # ---------------------------------------------------------------- kinds

    def fine(self, detail: str = "0") -> None:
        """After so many seconds."""
        time.sleep(float(detail))
        self.reply(self.good())

    def busy(self, detail: str) -> None:
        """Asks the first request to come back after so many seconds."""
        if self.counts[self.body["model"]] > 1:
            return self.reply(self.good())
        self.reply(b'{"error": {"message": "busy"}}', 429, retry_after=detail)

    def says(self, detail: str = "") -> None:
        self.reply(completion(detail))

    def model_key(self) -> None:
        """Answers as a model whose name is the key."""
        self.reply(completion("good", model=self.headers["authorization"]))

    def nameless(self) -> None:
        """Names no model in its first reply."""
        whole = json.loads(self.good())
        if self.counts[self.body["model"]] == 1:
            del whole["model"]
        self.reply(json.dumps(whole).encode())

    def says_key(self) -> None:
        self.reply(json.dumps({"error": {"message": f"no: {self.headers['authorization']}"}}).encode(), 401)

    def status(self, detail: str) -> None:
        self.reply(b'{"error": {"message": "\x1b[2Jno, Bearer secret-key"}}', int(detail))

    def garbage(self) -> None:
        self.reply(GARBAGE)

    def half(self) -> None:
        self.reply(self.good()[:40])

    def no_completion(self) -> None:
        self.reply(b'{"choices": "none"}')

    def empty(self) -> None:
        self.reply(b'{"choices": []}')

    def silent(self) -> None:
        time.sleep(60)

    def after_headers(self) -> None:
        self.reply(b"", length=100)
        self.wfile.flush()
        time.sleep(60)

    def drip(self) -> None:
        """A byte now and then: no pause is long, and there is no end."""
        self.reply(b"", length=10_000)
        for _ in range(600):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.1)

    def huge(self) -> None:
        self.reply(b"", length=10**10)
        for _ in range(10_000):
            self.wfile.write(b" " * 10**6)

    def huge_error(self) -> None:
        self.reply(b"", status=500, length=10**10)
        for _ in range(10_000):
            self.wfile.write(b" " * 10**6)

    def cut(self) -> None:
        """The connection ends in the middle of the body."""
        self.reply(self.good()[:20], length=500)
        self.close_connection = True

    def dies(self) -> None:
        """In the middle of its first reply; the process that comes after it answers."""
        died = self.log.with_suffix(".died")
        if died.exists():
            return self.reply(self.good())
        died.touch()
        self.reply(b'{"choi', length=500)
        self.wfile.flush()
        os._exit(1)

    def log_message(self, *args: object) -> None:
        pass


def serve(handler: type[Handler]) -> None:
    """Answers at the port, and with the log, of the command line."""
    handler.log = Path(sys.argv[2])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), handler).serve_forever()


if __name__ == "__main__":
    serve(Handler)
