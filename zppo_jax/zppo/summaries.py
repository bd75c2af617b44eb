r"""What a prompt shows of a response: the teacher's summary of it where that can stand for it, else the response's end.

Nothing in the form of a candidate may say who wrote it: then the student could find the right one of a BCQ prompt
without reading it. So a summary is taken wherever it holds the response's answer, in whatever spelling; the box is
written in the response's spelling, and a box that the compressor has invented is dropped.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol, get_args

from zppo_jax import prompts
from zppo_jax.rewards.extract import boxes, first_opening, last_box, trimmed

Author = Literal["student", "teacher"]
AUTHORS: tuple[Author, ...] = get_args(Author)

Refusal = Literal["no_summary", "no_answer", "other_answer", "too_long", "undecided"]
"""Why a summary cannot stand for its response: there is none; the answer is lost, or another one; the response was too
long to be compressed; the scorer could not compare the answers."""
REFUSALS: tuple[Refusal, ...] = get_args(Refusal)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A whole response that is to be shown in a prompt, with its parsed answer; equal ones need one compression."""

    text: str
    answer: str | None
    author: Author = "student"
    answer_type: str = "math"


class Checked(NamedTuple):
    """The text of a summary that can stand for its response, or why there is none: one of the two."""

    text: str
    refusal: Refusal | None = None


def boxed_answer(compressor_output: str) -> str | None:
    """The answer in the last box of a summary; None where there is none."""
    found = last_box(_summary_in(compressor_output))
    return None if found is None else trimmed(found)


def accept_summary(compressor_output: str, answer: str | None, equal: bool | None) -> Checked:
    r"""The text of the last closed `<summary>` block, its last box in the response's spelling.

    `equal`: whether the grader takes `boxed_answer` and the response's `answer` for the same, None where it cannot say.
    Where they are `written_alike`, nobody need ask it. A response without a parsed answer gets a summary without a box.
    """
    summary = _summary_in(compressor_output)
    if answer is None:
        summary = _without_boxes(summary)
    if not summary:
        return Checked("", "no_summary")
    if answer is None:
        return Checked(summary)
    found = boxed_answer(compressor_output)
    if found is None:
        return Checked("", "no_answer")
    if not equal and not written_alike(answer, found):
        return Checked("", "undecided" if equal is None else "other_answer")
    box = boxes(summary)[0][-1]
    return Checked(f"{summary[: box.start]}\\boxed{{{answer}}}{summary[box.end :]}")


def written_alike(answer: str, other: str) -> bool:
    """Whether two answers differ in white space alone."""
    return "".join(answer.split()) == "".join(other.split())


_TAG = re.compile(r"<\s*+/?\s*+(?:think|summary)\s*+>", re.IGNORECASE)


def _summary_in(output: str) -> str:
    """The last closed block, without tags that stand in it: nothing may mark a candidate."""
    before, closed, _ = output.rpartition("</summary>")
    _, opened, summary = before.rpartition("<summary>")
    return _TAG.sub("", summary).strip() if closed and opened else ""


def _without_boxes(summary: str) -> str:
    """The text without its boxes; one that is never closed ends the text."""
    parts, at = [], 0
    for box in boxes(summary)[0]:
        parts.append(summary[at : box.start])
        at = box.end
    rest = "".join([*parts, summary[at:]])
    opening = first_opening(rest)
    return (rest if opening < 0 else rest[:opening]).strip()


def fallback_summary(response_text: str, answer: str | None, truncate: Callable[[str], str]) -> str:
    r"""What stands for a response without a usable compression: its end, with its parsed answer in a box last.

    `truncate` keeps the last N tokens of a text (512 in the paper's setting; tokens are the processor's business). The
    tags of thinking and of summaries go, their text stays. `\boxed{answer}` is added unless the text already ends with
    exactly that, so it may come on top of the N tokens; a response without a parsed answer gets none.
    """
    parts = (part.strip() for part in _TAG.split(response_text))
    text = truncate("\n".join(part for part in parts if part)).strip()
    box = "" if answer is None else rf"\boxed{{{answer}}}"
    if text.endswith(box):
        return text
    return f"{text}\n{box}" if text else box


class TextCodec(Protocol):
    """What turns plain text into tokens and back; a Processor does."""

    def encode_text(self, text: str, /) -> list[int]: ...
    def decode(self, ids: list[int], /) -> str: ...


@dataclasses.dataclass(frozen=True)
class Digest:
    """A short text that the teacher writes of a response, and that a prompt shows in its place.

    Attributes:
      name: begins the metrics `<name>/summaries` (texts that were asked for) and `<name>/refused`.
      ask: the user turn for the teacher.
      claim: the answer that a written text gives, None where it gives none; the scorer compares it with the response's.
      accept: the text to be shown, or why it is refused, from (written text, candidate, whether its claim and the
        response's answer are equal: None where the scorer cannot say).
      fallback: what is shown where nothing was accepted or nothing is written, from (candidate, codec, most tokens).
        None: there is nothing to show then, and the prompt is not built.
    """

    name: str
    ask: Callable[[Candidate], str]
    claim: Callable[[str], str | None]
    accept: Callable[[str, Candidate, bool | None], Checked]
    fallback: Callable[[Candidate, TextCodec, int], str] | None


def last_tokens(text: str, codec: TextCodec, count: int) -> str:
    """The end of a text, at most `count` tokens of it."""
    ids = codec.encode_text(text)
    return text if len(ids) <= count else codec.decode(ids[-count:])


SUMMARY = Digest(
    name="compress",
    ask=lambda candidate: prompts.compress_text(candidate.text),
    claim=boxed_answer,
    accept=lambda output, candidate, equal: accept_summary(output, candidate.answer, equal),
    fallback=lambda candidate, codec, count: fallback_summary(
        candidate.text, candidate.answer, lambda text: last_tokens(text, codec, count)
    ),
)
"""The compression of a candidate (Fig 16), or the end of the response with its answer."""
