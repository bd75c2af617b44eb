"""Teachers at a scripted endpoint, which answer as the name of the asked model says.

    python -m tests.teacher.scripted PORT LOG

A good answer thinks, and boxes the number of images, the characters of the text, and the seed.
"""

from __future__ import annotations

import json
from typing import Any

from tests.remote.scripted import Handler, completion, serve

THOUGHT = "Let me see.\n"


def answer(body: dict[str, Any], index: int) -> str:
    content = body["messages"][0]["content"]
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    numbers = (len(parts) - len(texts), len("".join(texts)), body["seed"], index)
    return f"\\boxed{{{','.join(map(str, numbers))}}}"


class TeacherHandler(Handler):
    def answers(self, count: int | None = None) -> list[str]:
        return [answer(self.body, index) for index in range(self.body["n"] if count is None else count)]

    def good(self) -> bytes:
        texts = [f"{THOUGHT}</think>\n\n{text}" for text in self.answers()]
        return completion(*texts, model=self.body["model"])

    def thinks(self, detail: str) -> None:
        """`detail` only makes the name another one."""
        self.reply(self.good())

    def parsed(self, detail: str) -> None:
        """As a server with a reasoning parser replies; `detail` is its field."""
        self.reply(
            completion(*(f"\n\n{text}" for text in self.answers()), model=self.body["model"], **{detail: THOUGHT})
        )

    # ---------------------------------------------------------------- broken ones

    def other_model(self) -> None:
        self.reply(completion(*self.answers(), model="another"))

    def few(self) -> None:
        self.reply(completion(*self.answers(self.body["n"] - 1), model=self.body["model"]))

    def many(self) -> None:
        self.reply(completion(*self.answers(self.body["n"] + 1), model=self.body["model"]))

    def no_choices(self) -> None:
        self.reply(completion(model=self.body["model"]))

    def empty_choice(self) -> None:
        whole = json.loads(self.good())
        self.reply(json.dumps(whole | {"choices": [{} for _ in whole["choices"]]}).encode())

    def null_content(self) -> None:
        self.reply(completion(*[None] * self.body["n"], model=self.body["model"]))

    def not_utf8(self) -> None:
        self.reply(self.good().replace(b"Let me", b"L\xff\xfeme"))

    def half_pair(self) -> None:
        self.reply(self.good().replace(b"Let me", b"L\\ud800me"))

    def odd_reason(self) -> None:
        self.reply(self.good().replace(b'"stop"', b'{"a": 1}'))

    def twice_numbered(self) -> None:
        self.reply(self.good().replace(b'"index": 1', b'"index": 0'))

    def list_content(self) -> None:
        self.reply(self.good().replace(b'"content": "', b'"content": ["').replace(b'", "finish', b'"], "finish'))

    def too_long(self) -> None:
        self.reply(b'{"error": {"message": "This model\'s maximum context length is 8 tokens."}}', 400)


if __name__ == "__main__":
    serve(TeacherHandler)
