r"""Find the final answer in a response: the last \boxed{...} of the region that counts.

One pass with a stack, so that hostile text (100,000 times `\boxed{`) costs linear time; long text is read by NumPy.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

import numpy as np

from zppo_jax.rewards.verdict import Status

Region = Literal["final", "anywhere"]
REGIONS: tuple[Region, ...] = ("final", "anywhere")

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"

# An escaped character is one token, so that \{ and \} never count as braces and \\boxed is not a box. The quantifier
# is possessive: spaces after \boxed are read once, whatever follows them.
_TOKEN = re.compile(r"\\boxed\s*+\{|\\.|[{}]", re.DOTALL)
_NOT_A_BOX = -1
_OPENING = re.compile(r"\\boxed\s*+\{")
_LONG = 20_000
_MAX_ENCLOSING = 1000
"""The most boxes of a long text that may enclose its last one."""


def answer_region(response: str, region: str) -> str | None:
    """The part of a response in which a box counts; None if there is none.

    "anywhere" is the whole response, as in the paper's grader. "final" is the text after the last `</think>`: None if
    the last `<think>` is not closed, and the whole response if it has no tag.

    Raises:
      ValueError: on an unknown region.
    """
    if region not in REGIONS:
        raise ValueError(f"reward region {region!r} is unknown: use one of {', '.join(REGIONS)}")
    if region == "anywhere":
        return response
    _, _, tail = response.rpartition(THINK_CLOSE)
    return None if THINK_OPEN in tail else tail


class Box(NamedTuple):
    r"""A closed \boxed{...}: `start` and `end` of the whole, `inner` and `close` of its content, in characters."""

    start: int
    inner: int
    close: int
    end: int


def boxes(text: str) -> tuple[list[Box], int]:
    r"""The outermost closed boxes, in order, and where the last \boxed{ opens (-1: nowhere)."""
    opened: list[tuple[int, int]] = []
    found: list[Box] = []
    last = -1
    for token in _TOKEN.finditer(text):
        mark = token.group()
        if mark == "{":
            opened.append((_NOT_A_BOX, 0))
        elif mark.endswith("{") and mark.startswith(r"\boxed"):
            last = token.start()
            opened.append((last, token.end()))
        elif mark == "}" and opened:
            start, inner = opened.pop()
            if start != _NOT_A_BOX:
                while found and found[-1].start > start:
                    found.pop()  # it is inside this one
                found.append(Box(start, inner, token.start(), token.end()))
    return found, last


def first_opening(text: str) -> int:
    r"""The position of the first \boxed{ of a text, closed or not; -1 if there is none."""
    return next((token.start() for token in _TOKEN.finditer(text) if token.group().startswith(r"\boxed")), -1)


def trimmed(content: str) -> str:
    r"""The answer in a box without outer white space. A `\ ` at its end is removed as a whole: the backslash alone
    would escape the brace of any box that the answer is written into."""
    answer = content.strip()
    backslashes = len(answer) - len(answer.rstrip("\\"))
    return answer[:-1].rstrip() if backslashes % 2 else answer


def last_box(text: str) -> str | None:
    r"""The content of the last box; None if there is no \boxed{ or the last one is never closed.

    The last box is the one opened last, as in the paper's grader: `\boxed{5} .. \boxed{6` was cut off inside its
    answer, so the result is None. If a closed box encloses it, that one counts (`\boxed{\boxed{3}+1}` gives
    `\boxed{3}+1`).
    """
    return _last_of_long(text)[0] if len(text) > _LONG else _last_content(text, *boxes(text))


def _last_of_long(text: str) -> tuple[str | None, int]:
    r"""The content of the last box, and where the last \boxed{ opens, with no step of Python per brace.

    The depth of braces is a running sum that never falls below 0, since closing braces without an opening count for
    nothing. A brace closes where the depth first falls below its own.
    """
    bare = text.replace("\\\\", "  ").replace(r"\{", "  ").replace(r"\}", "  ")
    openings = _last_openings(bare)
    if not openings:
        return None, -1
    chars_T = np.frombuffer(bare[openings[0].start() :].encode("utf-32-le", "surrogatepass"), np.uint32)
    steps_T = (chars_T == ord("{")).astype(np.int32) - (chars_T == ord("}"))
    sums_T = np.cumsum(steps_T, dtype=np.int32)
    depths_T = sums_T - np.minimum(np.minimum.accumulate(sums_T), 0)
    places = [opening.end() - 1 - openings[0].start() for opening in openings]
    last = places[-1]
    lowest_T = np.minimum.accumulate(depths_T[: last + 1][::-1])[::-1]  # between each place and the last box
    lowest_after = depths_T[last:].min()
    for opening, place in zip(openings, places, strict=True):
        if lowest_T[place] >= depths_T[place] > lowest_after:
            close = last + int(np.argmax(depths_T[last:] < depths_T[place])) + openings[0].start()
            return text[opening.end() : close], openings[-1].start()
    return None, openings[-1].start()


def _last_openings(bare: str) -> list[re.Match[str]]:
    start = len(bare)
    for _ in range(_MAX_ENCLOSING):
        if (place := bare.rfind(r"\boxed", 0, start)) < 0:
            break
        start = place
    return list(_OPENING.finditer(bare, start))


def _last_content(text: str, found: list[Box], last: int) -> str | None:
    return text[found[-1].inner : found[-1].close] if found and last < found[-1].end else None


def extract_answer(response: str, region: str = "final") -> tuple[str | None, Status]:
    """The answer text of a response and a status: OK, NO_ANSWER (no box, empty box, unclosed thinking) or MALFORMED.

    MALFORMED means that the last box was never closed, as when a response is cut off.
    """
    text = answer_region(response, region)
    if text is None:
        return None, Status.NO_ANSWER
    if len(text) > _LONG:
        content, last = _last_of_long(text)
    else:
        found, last = boxes(text)
        content = _last_content(text, found, last)
    if content is None:
        return None, Status.NO_ANSWER if last < 0 else Status.MALFORMED
    answer = trimmed(content)
    return (answer, Status.OK) if answer else (None, Status.NO_ANSWER)
