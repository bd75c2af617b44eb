r"""Find the final answer in a response: the last balanced \boxed{...} of the region that counts.

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


def last_box(text: str) -> tuple[str | None, bool]:
    r"""The content of the last balanced box, and whether any \boxed{ was seen at all.

    Of nested boxes the outermost balanced one counts. Content is None where no box is balanced.
    """
    open_braces: list[int] = []
    content: tuple[int, int] | None = None
    seen = False
    for token in _TOKEN.finditer(text):
        mark = token.group()
        if mark == "{":
            open_braces.append(_NOT_A_BOX)
        elif mark.endswith("{") and mark.startswith(r"\boxed"):
            seen = True
            open_braces.append(token.end())
        elif mark == "}" and open_braces:
            start = open_braces.pop()
            # A box that closes later either follows or encloses the earlier ones: either way it is the one.
            content = content if start == _NOT_A_BOX else (start, token.start())
    return (text[content[0] : content[1]] if content else None), seen


def extract_answer(response: str, region: str = "final") -> tuple[str | None, Status]:
    """The answer text of a response and a status: OK, NO_ANSWER (no box, empty box, unclosed thinking) or MALFORMED.

    MALFORMED means that a box was opened and never closed, as when a response is cut off.
    """
    text = answer_region(response, region)
    if text is None:
        return None, Status.NO_ANSWER
    content, seen = last_box(text)
    if content is None:
        return None, Status.MALFORMED if seen else Status.NO_ANSWER
    answer = content.strip()
    return (answer, Status.OK) if answer else (None, Status.NO_ANSWER)
