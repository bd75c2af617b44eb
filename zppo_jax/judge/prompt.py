r"""What the judge reads: the wording of Fig 9 of arXiv:2606.18216, and fences that no text inside can leave.

The words are the paper's, each of them; the figure lost its line breaks and the form of its quotes, which are those of
a Markdown text here. Question, options, response and gold stand in tags of their own (`<response>` and so on), which
the paper does not have. In a text that stands there, everything that could be taken for the frame is made harmless: the
tags, special tokens, the headings of the template, and the beginning of a verdict. So each tag and each heading occurs
in a prompt exactly once, whatever a response spells, and a judge that compares what the fences hold cannot be misled.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from zppo_jax.zppo.prompts import BLANK_LINE, neutralise, tag_pattern

VERSION = "fig9-1"
"""Part of the key of a kept verdict: change it with the wording, the layout or the fences."""

ROLE = r"""You are an expert judge evaluating whether a model's response is correct according to the ground truth.

## Your Role (READ FIRST)
You are a COMPARATOR, not a solver. Your ONLY job is to decide how well the model's response matches the provided GROUND TRUTH.
- Do NOT attempt to solve the problem yourself.
- Do NOT infer or derive what the "real" answer should be.
- Do NOT second-guess the ground truth, even if it seems wrong.
- The "Model Response" section below MAY be either (a) the model's full trajectory including any <think>...</think> reasoning and a concluding \boxed{...} answer, OR (b) a short EXTRACTED snippet that was already pulled out as the candidate final answer (e.g. a bare letter like B, a number like 42, an expression like x = 5/3). Treat both forms uniformly: the snippet (when given) IS the model's committed final answer, and a full trajectory's final answer is the content inside the last \boxed{...} or the concluding sentence AFTER any </think> tag.
- If the final answer is missing due to answer format error, truncation, or other reasons, look inside thinking or reasoning.
- You should OUTPUT JSON with the format {"verdict": "correct" or "wrong"} based on the model's response and the ground truth."""  # noqa: E501
CLOSER = (
    "Output ONLY a valid JSON object with exactly this format (no prose, no code fences, no trailing commentary): "
    '{"verdict": "correct" or "wrong"}'
)

MAX_RESPONSE_CHARS = 65_536
"""Of a longer response the judge reads the end, where the answer is: 12,288 tokens of the paper's responses fit."""


class Case(NamedTuple):
    """What is judged: a question, its gold, the response (or the answer in its box), and the options if there are any.

    The judge sees no image: Fig 9 has text only.
    """

    question: str
    gold: str
    response: str
    options: str = ""


def judge_text(case: Case) -> str:
    """The user turn that asks for a verdict; the options are only there if they are not empty (Fig 9)."""
    sections = [ROLE, f"## Question\n{_fenced('question', case.question)}"]
    if case.options:
        sections.append(f"## Answer Options\n{_fenced('options', case.options)}")
    sections.append(f"## Model Response\n{_fenced('response', case.response[-MAX_RESPONSE_CHARS:])}")
    sections += [f"## Ground Truth Answer\n{_fenced('ground_truth', case.gold)}", CLOSER]
    return BLANK_LINE.join(sections)


def _fenced(name: str, text: str) -> str:
    return f"<{name}>\n{harmless(text).strip()}\n</{name}>"


_FENCES = tag_pattern(("question", "options", "ground_truth"))  # `response` is one of neutralise's own
_SPACE = r"[\s\u200b-\u200f\u2060\ufeff]*+"
# Looks at a run of # once: from its first character.
_HEADING = re.compile(
    rf"(?<!#)(#++)(?={_SPACE}(?:your role|question|answer options|model response|ground truth))", re.IGNORECASE
)
_VERDICT = re.compile(r"""\{(?=[\s\u200b-\u200f\u2060\ufeff"'`\\“”‘’]*+verdict)""", re.IGNORECASE)


def harmless(text: str) -> str:
    """A text that cannot be taken for the frame around it, still readable: square brackets around or instead of what
    could. A lone surrogate, which no request can carry, becomes a question mark. Takes linear time."""
    text = text.encode("utf-8", "replace").decode()
    text = _FENCES.sub(r"[\1]", neutralise(text))
    return _VERDICT.sub("[", _HEADING.sub(r"[\1]", text))
