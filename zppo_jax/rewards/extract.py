r"""Find the final answer in a response: the last \boxed{...} of the region that counts.

One pass with a stack, so that hostile text (100,000 times `\boxed{`) costs linear time.
"""

from __future__ import annotations

import re
from typing import Literal

from zppo_jax.rewards.verdict import Status

Region = Literal["final", "anywhere"]
REGIONS: tuple[Region, ...] = ("final", "anywhere")

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"

# An escaped character is one token, so that \{ and \} never count as braces and \\boxed is no box. The quantifier
# is possessive: spaces after \boxed are read once, whatever follows them.
_TOKEN = re.compile(r"\\boxed\s*+\{|\\.|[{}]", re.DOTALL)
_NOT_A_BOX = -1


def answer_region(response: str, region: str) -> str | None:
    """The part of a response whose box counts, or None where there is no such part.

    "anywhere" is the paper's grader (the whole response). "final" is what follows the last `</think>`; a response
    whose last `<think>` is not closed has no final part, and one without any tag is final as a whole.

    Raises:
      ValueError: on an unknown region.
    """
    if region not in REGIONS:
        raise ValueError(f"reward region {region!r} is unknown: use one of {', '.join(REGIONS)}")
    if region == "anywhere":
        return response
    _, _, tail = response.rpartition(THINK_CLOSE)
    return None if THINK_OPEN in tail else tail


def last_box(text: str) -> str | None:
    r"""The content of the last box, or None where there is no \boxed{ or the last one is never closed.

    The last box is the one opened last, as in the paper's grader: `\boxed{5} .. \boxed{6` was cut off inside its
    answer and has none. A balanced box around it takes its place (`\boxed{\boxed{3}+1}` holds `\boxed{3}+1`).
    """
    open_braces: list[int] = []
    content: tuple[int, int] | None = None
    for token in _TOKEN.finditer(text):
        mark = token.group()
        if mark == "{":
            open_braces.append(_NOT_A_BOX)
        elif _opens_box(mark):
            open_braces.append(token.end())
            content = None
        elif mark == "}" and open_braces:
            start = open_braces.pop()
            # The first box that closes after the last opening is the last one; those that close later enclose it.
            content = content if start == _NOT_A_BOX else (start, token.start())
    return text[content[0] : content[1]] if content else None


def _opens_box(mark: str) -> bool:
    return mark.endswith("{") and mark.startswith(r"\boxed")


def extract_answer(response: str, region: str = "final") -> tuple[str | None, Status]:
    """The answer text of a response and a status: OK, NO_ANSWER (no box, empty box, unclosed thinking) or MALFORMED.

    MALFORMED means that the last box was opened and never closed, as when a response is cut off.
    """
    text = answer_region(response, region)
    if text is None:
        return None, Status.NO_ANSWER
    content = last_box(text)
    if content is None:
        cut_off = any(_opens_box(token.group()) for token in _TOKEN.finditer(text))
        return None, Status.MALFORMED if cut_off else Status.NO_ANSWER
    answer = content.strip()
    return (answer, Status.OK) if answer else (None, Status.NO_ANSWER)
