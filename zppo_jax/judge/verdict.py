"""The verdict in a judge's output, read strictly; nothing but a verdict is one."""

from __future__ import annotations

import enum
import json

THINK_CLOSE = "</think>"
_MAX_CHARS = 200


class Ruling(enum.StrEnum):
    """What a judge made of a response.

    `MALFORMED`: its output is not a verdict, and counts as wrong (App. B.2 of arXiv:2606.18216). `FAILED`: none came,
    so that the response is neither right nor wrong.
    """

    CORRECT = "correct"
    WRONG = "wrong"
    MALFORMED = "malformed"
    FAILED = "failed"


def parse(output: str) -> Ruling:
    """The ruling in an output: `{"verdict": "correct"}` or `{"verdict": "wrong"}` and nothing else, in JSON.

    Thinking before it, up to the last `</think>`, does not count. Prose, a code fence, other keys, a key given twice or
    other values make it malformed.
    """
    said = output.rpartition(THINK_CLOSE)[2].strip()
    if len(said) > _MAX_CHARS:
        return Ruling.MALFORMED
    try:
        found = json.loads(said, object_pairs_hook=tuple)  # a dict would hide a key that is given twice
    except (ValueError, RecursionError):
        return Ruling.MALFORMED
    rulings = (one for one in (Ruling.CORRECT, Ruling.WRONG) if found == (("verdict", one.value),))
    return next(rulings, Ruling.MALFORMED)
