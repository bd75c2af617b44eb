"""A judge's endpoint in a process of its own, honest or broken as the name of the asked model says.

    python tests/judge/scripted.py PORT LOG

Every request adds a line to LOG: the name of the model. The honest judges look at nothing but what the fences of the
prompt hold, each in a way of its own, and compare the two texts.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

GARBAGE = b"<html>\xff\xfe no JSON here"


def between(prompt: str, opening: str, closing: str, last: bool = False) -> str:
    """The text from the first (or the last) opening mark to the next closing one."""
    start = prompt.rindex(opening) if last else prompt.index(opening)
    return prompt[start + len(opening) :].split(closing)[0]


def by_first_fence(prompt: str) -> tuple[str, str]:
    return tuple(between(prompt, f"<{name}>", f"</{name}>") for name in ("response", "ground_truth"))  # type: ignore


def by_last_fence(prompt: str) -> tuple[str, str]:
    return tuple(between(prompt, f"<{name}>", f"</{name}>", True) for name in ("response", "ground_truth"))  # type: ignore


def by_loose_fence(prompt: str) -> tuple[str, str]:
    """Takes tags as a careless reader does: of any case, with spaces, and the innermost."""

    def read(name: str) -> str:
        tag = rf"<[\s\u200b-\u200f\u2060\ufeff]*{name}\s*>(.*?)<\s*/[\s\u200b-\u200f\u2060\ufeff]*{name}\s*>"
        return re.findall(tag, prompt, re.S | re.I)[-1]

    return read("response"), read("ground_truth")


def by_heading(prompt: str) -> tuple[str, str]:
    """Reads the sections by their headings, the first of each name."""
    sections = dict(
        reversed(re.findall(r"##\s*(Model Response|Ground Truth Answer)\s*\n(.*?)(?=\n##|\Z)", prompt, re.S | re.I))
    )
    found = (sections["Model Response"], sections["Ground Truth Answer"])
    return tuple(re.sub(r"</?(?:response|ground_truth)>|\n\nOutput ONLY.*", "", one, flags=re.S) for one in found)  # type: ignore


def by_first_verdict(prompt: str) -> tuple[str, str]:
    """A judge that copies a verdict that it finds behind its instructions, wherever it stands; else it compares."""
    texts = prompt.partition("## Question")[2].rpartition("Output ONLY")[0]
    said = re.search(r"""\{[\s\u200b\\"']*verdict[\s\\"']*:[\s\\"']*(\w+)""", texts)
    if said:
        return ("", "") if said[1] == "correct" else ("a", "b")
    return by_first_fence(prompt)


HONEST = {
    "honest-first": by_first_fence,
    "honest-last": by_last_fence,
    "honest-loose": by_loose_fence,
    "honest-heading": by_heading,
    "honest-verdict": by_first_verdict,
}


def verdict(reader: str, prompt: str) -> str:
    response, gold = HONEST[reader](prompt)
    equal = " ".join(response.split()).lower() == " ".join(gold.split()).lower()
    return json.dumps({"verdict": "correct" if equal else "wrong"})


def completion(content: str | None) -> bytes:
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    whole = {"id": "x", "object": "chat.completion", "created": 0, "model": "x", "choices": [choice]}
    return json.dumps(whole).encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    counts: dict[str, int] = {}  # noqa: RUF012
    log: Path

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        model, prompt = body["model"], body["messages"][0]["content"]
        self.counts[model] = self.counts.get(model, 0) + 1
        with self.log.open("a") as log:
            log.write(json.dumps({"model": model, "key": self.headers["authorization"], "body": body}) + "\n")
        self.answer(model, prompt)

    def answer(self, model: str, prompt: str) -> None:
        kind, _, detail = model.partition(":")
        if kind in HONEST:
            self.reply(completion(verdict(kind, prompt)))
        elif kind == "odd":  # finds every second response right
            is_odd = sum(by_first_fence(prompt)[0].encode()) % 2
            self.reply(completion(json.dumps({"verdict": "correct" if is_odd else "wrong"})))
        elif kind == "says":
            self.reply(completion(detail))
        elif kind == "status":
            self.reply(b'{"error": {"message": "\x1b[2Jno, Bearer secret-key"}}', int(detail))
        elif kind == "flaky":  # fails so often, then judges
            failing = self.counts[model] <= int(detail)
            self.reply(b"{}" if failing else completion(verdict("honest-first", prompt)), 503 if failing else 200)
        elif kind == "poison" and "poison" in prompt:
            self.reply(b"{}", 500)
        elif kind == "poison":
            self.reply(completion(verdict("honest-first", prompt)))
        else:
            getattr(self, kind)()

    def reply(self, content: bytes, status: int = 200, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    # ---------------------------------------------------------------- broken ones

    def garbage(self) -> None:
        self.reply(GARBAGE)

    def half(self) -> None:
        self.reply(completion('{"verdict": "correct"}')[:40])

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
        self.reply(completion('{"verdict": "correct"}')[:20], length=500)
        self.close_connection = True

    def dies(self) -> None:
        """In the middle of its first reply; the process that comes after it judges."""
        died = self.log.with_suffix(".died")
        if died.exists():
            return self.reply(completion('{"verdict": "wrong"}'))
        died.touch()
        self.reply(b'{"choi', length=500)
        self.wfile.flush()
        os._exit(1)

    def log_message(self, *args: object) -> None:
        pass


if __name__ == "__main__":
    Handler.log = Path(sys.argv[2])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
