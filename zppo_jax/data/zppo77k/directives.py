r"""Upstream directives on how to answer, taken out of questions: our closer says it, and two would contradict.

Stripped are sentences on **how** to answer (the letter only, a box, step by step, tags). Kept are those on **what** the
answer is (unit, decimals, language, schema). Only a leading or trailing sentence goes, never a part of the question or
an option. The wordings are upstream's: LLaVA and FineVision (`letter`, `word`), MathV360K and MathVista (`hint`), sets
for reinforcement learning (`boxed`), and MMFineReason's own cleaning (`reason`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_DIRECTLY = r"(?:\s+directly)?"
_PLEASE = r"(?:please\s+)?"
_OPTION = r"(?:option|choice|answer)"
_LETTER = rf"(?:the\s+)?(?:correct\s+|corresponding\s+)?(?:{_OPTION}(?:['’]s)?\s+)?letters?"

FAMILIES: dict[str, tuple[str, ...]] = {
    "letter": (
        rf"{_PLEASE}(?:answer|respond|reply)(?:\s+the\s+question)?(?:\s+only)?{_DIRECTLY}\s+(?:with|using|by\s+giving)"
        rf"\s+(?:only\s+|just\s+)?{_LETTER}(?:\s+only)?(?:\s+of\s+the\s+correct\s+{_OPTION})?"
        rf"(?:\s+from\s+the\s+(?:given\s+)?(?:choices|options))?{_DIRECTLY}(?:\s*\([A-Z](?:,?\s*(?:or\s+)?[A-Z])*\))?",
        rf"{_PLEASE}(?:only\s+)?(?:give|select|choose|pick)\s+(?:only\s+)?the\s+(?:best|correct)\s+{_OPTION}"
        rf"(?:\s+from\s+the\s+(?:given\s+|following\s+)?(?:choices|options))?{_DIRECTLY}",
        rf"{_PLEASE}directly\s+answer\s+the\s+question\s+and\s+(?:provide|give)\s+{_LETTER}(?:,\s*e\.g\.,[A-Z, ]+)?"
        r"(?:\s+at\s+the\s+end)?",
    ),
    "word": (
        rf"{_PLEASE}answer(?:\s+the\s+question)?{_DIRECTLY}\s+(?:using|with|in)\s+(?:only\s+)?(?:a|one)\s+"
        r"(?:single\s+)?word(?:,?\s*(?:number,?\s*)?or\s+(?:a\s+)?(?:short\s+)?(?:phrase|number))?",
        rf"{_PLEASE}(?:give|provide)\s+a\s+(?:very\s+)?(?:short|brief)\s+answer",
        rf"{_PLEASE}answer(?:\s+the\s+question)?\s+(?:briefly|concisely)",
    ),
    "hint": (
        rf"hint:\s*{_PLEASE}answer\s+the\s+question\s+and\s+provide\s+{_LETTER},\s*e\.g\.,[A-Z, ]+?at\s+the\s+end",
    ),
    "boxed": (
        r"(?:please\s+)?(?:put|write|give|provide|enclose|place|return|output)\s+(?:your|the)\s+(?:final\s+)?answer\s+"
        r"(?:within|in|inside|using|with)\s+(?:a\s+)?(?:\$)?\\+boxed\s*(?:\{[^{}]{0,20}\})?(?:\$)?",
        r"(?:the\s+)?(?:final\s+)?answer\s+must\s+be\s+(?:put|enclosed|written)\s+(?:in|within|inside)\s+(?:a\s+)?"
        r"\\+boxed\s*(?:\{[^{}]{0,20}\})?",
        r"(?:please\s+)?(?:first,?\s+)?(?:you\s+(?:first|must|should)\s+)?(?:output|write|put|show|think|enclose|give|"
        r"provide|respond|the\s+(?:reasoning|thinking|thought|final\s+answer|answer)|your\s+(?:reasoning|answer))\b"
        r"[^.?!\n]{0,160}<(?:think|answer)>[^.?!\n]{0,240}",
        r"(?:please\s+)?(?:let['’]s\s+)?(?:think|reason)\s+(?:about\s+it\s+)?step[\s-]+by[\s-]+step"
        r"(?:,?\s+(?:and|then)\s+(?:put|write|give|provide)\s+(?:your|the)\s+(?:final\s+)?answer\s+"
        r"(?:within|in|inside)\s+\\+boxed\s*(?:\{[^{}]{0,20}\})?)?",
    ),
    "reason": (
        r"(?:please\s+)?(?:first,?\s+)?(?:carefully\s+)?(?:think|reason|work)\b[^.?!\n\d$=]{0,100}?\b(?:before|and\s+then|"
        r"then|to\s+(?:reach|arrive\s+at|determine))\b[^.?!\n\d$=]{0,60}\b(?:answer|answering|solution|conclusion)",
        r"(?:please\s+)?(?:first,?\s+)?(?:provide|give|show|explain|write)\s+(?:your\s+|a\s+|the\s+|all\s+)?"
        r"(?:detailed\s+|clear\s+|complete\s+|full\s+|step[\s-]+by[\s-]+step\s+)*(?:reasoning|explanation|solution|work|"
        r"steps|thought\s+process)\b(?:[^.?!\n\d$=]{0,60}\b(?:before|and\s+then|then|leading\s+to)\b[^.?!\n\d$=]{0,60}"
        r"\b(?:answer|answering|conclusion))?",
        r"(?:please\s+)?(?:solve|answer)\s+(?:the|this)\s+(?:problem|question)\s+step[\s-]+by[\s-]+step",
    ),
}
"""Sentences of each family, as patterns without the end mark."""

_PLACEHOLDER = re.compile(r"<(?:image|video)>")
_LABEL = re.compile(r"^\s*question\s*:\s*(?=\S)", re.IGNORECASE)
_BEFORE = r"(?:^|(?<=[\s.,;:?!)\]}。]))"
_AFTER_OPTION = re.compile(r"(?:^|[\s,;])[(\[]?[A-Z][.):\]]$")
_MAX_CHARS = 600
"""A directive is looked for in so many characters at each end: patterns then cost the same for any question."""


def _compiled(patterns: Iterable[str]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    either = "|".join(f"(?:{pattern})" for pattern in patterns)
    ends = r"\s*[.!。]?['\"”)]?\s*$"
    return (
        re.compile(rf"{_BEFORE}['\"“(]?(?:{either}){ends}", re.IGNORECASE),
        re.compile(rf"^\s*(?:{either})\s*(?:[.!:。]\s*|\n\s*)(?=\S)", re.IGNORECASE),
    )


_PATTERNS = {family: _compiled(patterns) for family, patterns in FAMILIES.items()}


def count_placeholders(question: str) -> int:
    """The number of `<image>` and `<video>` in a question."""
    return len(_PLACEHOLDER.findall(question))


def cleaned(question: str, families: Iterable[str]) -> str:
    """The question without placeholders (the images come first in our prompts), the label "Question:" and directives of
    these families; whatever they are, never empty if the question was not."""
    text = _LABEL.sub("", _PLACEHOLDER.sub(" ", question).strip())
    text = re.sub(r"[ \t]{2,}", " ", text)
    families = tuple(families)
    while (shorter := _without_one(text, families)) != text:
        text = shorter
    return text


def _without_one(text: str, families: Iterable[str]) -> str:
    for family in families:
        last, first = _PATTERNS[family]
        start = max(0, len(text) - _MAX_CHARS)
        found = last.search(text, start)
        if found and (rest := text[: found.start()].rstrip()) and not _AFTER_OPTION.search(rest[-8:]):
            return rest
        found = first.match(text[:_MAX_CHARS])
        if found and (rest := text[found.end() :].lstrip()):
            return rest
    return text
