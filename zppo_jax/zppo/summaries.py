r"""The text that a prompt shows for a response: the teacher's summary if it is acceptable, else the response's end.

The form of a candidate must not reveal who wrote it, or the student could find the right one of a BCQ prompt without
reading it. So a summary is accepted if it holds the response's answer in any spelling; the box is written in the
response's spelling, and a box that the compressor has invented is dropped.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol, get_args

from zppo_jax.rewards.extract import boxes, first_opening, last_box, trimmed
from zppo_jax.zppo import prompts

Author = Literal["student", "teacher"]
AUTHORS: tuple[Author, ...] = get_args(Author)

Refusal = Literal["no_summary", "no_answer", "other_answer", "too_long", "undecided", "unwritten"]
"""The reason why a summary cannot replace its response: there is no summary; its answer is missing, or a different one;
the response was too long to be compressed; the scorer could not compare the answers; the teacher wrote nothing."""
REFUSALS: tuple[Refusal, ...] = get_args(Refusal)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A whole response to be shown in a prompt, with its parsed answer; equal candidates share one compression."""

    text: str
    answer: str | None
    author: Author = "student"
    answer_type: str = "math"


class Checked(NamedTuple):
    """Either the text of an accepted summary, or the reason why it was refused."""

    text: str
    refusal: Refusal | None = None


def boxed_answer(compressor_output: str) -> str | None:
    """The answer in the last box of a summary; None if there is none."""
    found = last_box(_summary_in(compressor_output))
    return None if found is None else trimmed(found)


def accept_summary(compressor_output: str, answer: str | None, equal: bool | None) -> Checked:
    r"""The text of the last closed `<summary>` block, its last box in the response's spelling.

    `equal`: whether the grader considers `boxed_answer` and the response's `answer` equal, None if it cannot say. It is
    not needed if they are `written_alike`. A response without a parsed answer gets a summary without a box.
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
    """Whether two answers differ in white space only, or not at all."""
    return "".join(answer.split()) == "".join(other.split())


_TAG = re.compile(r"<\s*+/?\s*+(?:think|summary)\s*+>", re.IGNORECASE)


def _summary_in(output: str) -> str:
    """The last closed block, without the tags inside it: nothing may mark a candidate."""
    before, closed, _ = output.rpartition("</summary>")
    _, opened, summary = before.rpartition("<summary>")
    return _TAG.sub("", summary).strip() if closed and opened else ""


def _without_boxes(summary: str) -> str:
    """Removes the boxes from a text; one that is never closed ends the text."""
    parts, at = [], 0
    for box in boxes(summary)[0]:
        parts.append(summary[at : box.start])
        at = box.end
    rest = "".join([*parts, summary[at:]])
    opening = first_opening(rest)
    return (rest if opening < 0 else rest[:opening]).strip()


def fallback_summary(response_text: str, answer: str | None, truncate: Callable[[str], str]) -> str:
    r"""The replacement for a response without a usable compression: its end, then its parsed answer in a box.

    `truncate` keeps the last N tokens of a text (512 in the paper's setting; the processor defines tokens). The tags of
    thinking and of summaries are removed, their text stays. `\boxed{answer}` is added unless the text already ends with
    exactly that, so it may come on top of the N tokens; a response without a parsed answer gets none.
    """
    parts = (part.strip() for part in _TAG.split(response_text))
    text = truncate("\n".join(part for part in parts if part)).strip()
    box = "" if answer is None else rf"\boxed{{{answer}}}"
    if text.endswith(box):
        return text
    return f"{text}\n{box}" if text else box


class TextCodec(Protocol):
    """Turns plain text into tokens and back; a Processor does."""

    def encode_text(self, text: str, /) -> list[int]: ...
    def decode(self, ids: list[int], /) -> str: ...


@dataclasses.dataclass(frozen=True)
class Digest:
    """A short text that the teacher writes about a response, and that a prompt shows in its place.

    Attributes:
      name: the prefix of the metrics `<name>/summaries` (texts that were requested) and `<name>/refused`.
      ask: the user turn for the teacher.
      claim: the answer that a written text gives, None if it gives none; the scorer compares it with the response's.
      accept: the text to show or the reason for refusing it, from (written text, candidate, whether its claim and the
        response's answer are equal, None if the scorer cannot say).
      fallback: the text to show if none was accepted or written, from (candidate, codec, most tokens). None: there is
        nothing to show then, and the prompt is not built.
    """

    name: str
    ask: Callable[[Candidate], str]
    claim: Callable[[str], str | None]
    accept: Callable[[str, Candidate, bool | None], Checked]
    fallback: Callable[[Candidate, TextCodec, int], str] | None


def last_tokens(text: str, codec: TextCodec, count: int) -> str:
    """The last tokens of a text, at most `count`."""
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
"""The compression of a candidate (Fig 16); its fallback is the end of the response with its answer."""
