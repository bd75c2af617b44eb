"""Judges at a scripted endpoint, honest or not, as the name of the asked model says.

    python -m tests.judge.scripted PORT LOG

The honest judges look at nothing but what the fences of the prompt hold, each in its way, and compare the two
texts.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tests.remote.scripted import Handler, completion, serve


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


class JudgeHandler(Handler):
    def answer(self, kind: str, detail: str, body: dict[str, Any]) -> None:
        prompt = body["messages"][0]["content"]
        if kind in HONEST:
            self.reply(completion(verdict(kind, prompt)))
        elif kind == "odd":  # finds every second response right
            is_odd = sum(by_first_fence(prompt)[0].encode()) % 2
            self.reply(completion(json.dumps({"verdict": "correct" if is_odd else "wrong"})))
        elif kind == "flaky":  # fails so often, then judges
            failing = self.counts[body["model"]] <= int(detail)
            self.reply(b"{}" if failing else completion(verdict("honest-first", prompt)), 503 if failing else 200)
        elif kind == "poison" and "poison" in prompt:
            self.reply(b"{}", 500)
        elif kind == "poison":
            self.reply(completion(verdict("honest-first", prompt)))
        else:
            super().answer(kind, detail, body)

    def good(self) -> bytes:
        return completion('{"verdict": "wrong"}')


if __name__ == "__main__":
    serve(JudgeHandler)
