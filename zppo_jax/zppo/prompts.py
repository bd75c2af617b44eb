r"""Every template constant of the project, byte-exact, and the text functions that fill them.

The wording of the "paper" template is verbatim from arXiv:2606.18216: Fig 8 (the RL closer), Fig 16 (compression),
Fig 17 (BCQ) and Fig 18 (NCQ). The figures lost their line breaks; the layout here is: question, blank line, block with
each tag on a separate line, blank line, closer. "compact" keeps blocks and order in fewer words, because every token
costs a tiny model context.

Candidates and listed wrong answers are text of a model, so they are untrusted: `bcq_text`, `ncq_text` and
`compress_text` neutralise them themselves, so that no caller can forget it. The question is left as the source wrote
it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from zppo_jax.types import IMAGE_MARK, VIDEO_MARK

CANDIDATE_OPEN = "<candidate>"
CANDIDATE_CLOSE = "</candidate>"
BLANK_LINE = "\n\n"


@dataclasses.dataclass(frozen=True)
class Template:
    """The words around a question.

    `closer` ends every prompt. `bcq_intro` comes before the two candidates of a BCQ prompt. An NCQ prompt begins with
    `ncq_list_open`, the boxed wrong answers joined with `ncq_list_separator`, `ncq_list_close`, and then `ncq_intro`;
    the sentence with the list is left out if no wrong answer could be parsed.
    """

    closer: str
    bcq_intro: str
    ncq_list_open: str
    ncq_list_separator: str
    ncq_list_close: str
    ncq_intro: str


TEMPLATES: dict[str, Template] = {
    # Figs 8, 17 and 18 of arXiv:2606.18216, verbatim.
    "paper": Template(
        closer=(
            "You FIRST think about the reasoning process as an internal monologue and then provide the final answer. "
            "The reasoning process MUST BE enclosed within <think> </think> tags. "
            r"The final answer MUST BE put in \boxed{}."
        ),
        bcq_intro=(
            "Here are two candidate responses in <candidate> </candidate> tags to the question above. "
            "One is correct and another is wrong. Use these as references to help you solve the problem."
        ),
        ncq_list_open="The following answers are all WRONG: ",
        ncq_list_separator=", ",
        ncq_list_close=".",
        ncq_intro="Below are the incorrect reasoning processes in <candidate> </candidate> tags.",
    ),
    "compact": Template(
        closer=r"Answer in \boxed{}.",
        bcq_intro="One is correct, one is wrong.",
        ncq_list_open="All WRONG: ",
        ncq_list_separator=", ",
        ncq_list_close=".",
        ncq_intro="",
    ),
}

COMPRESS_RESPONSE_SLOT = "{candidate response}"
COMPRESS_PROMPT = r"""Compress the response below into a summary (in 5 lines max).
Rules:
- Response is in <response>...</response> tags
- Summary should be in <summary>...</summary> tags and should be in 5 lines max
- Keep ONLY the essential reasoning steps and the final answer
- Remove ALL exploratory text, self-corrections, retries, and filler
- Do NOT re-derive or add new information
- End with the final answer in \boxed{} format
<response>
{candidate response}
</response>"""
"""The compression prompt for the frozen teacher (Fig 16), without the question. Fill it with `compress_text`."""


def get_template(name: str) -> Template:
    """Returns the template of that name; raises ValueError, which lists the known ones."""
    if name not in TEMPLATES:
        raise ValueError(f"prompt.template={name!r} is unknown; use one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def plain_text(question_text: str, template: Template) -> str:
    """The user turn of a plain or replayed question: the question and the closer (Fig 8)."""
    return BLANK_LINE.join((question_text, template.closer))


def bcq_text(question_text: str, first: str, second: str, template: Template) -> str:
    """The user turn of a binary candidate-included question (Fig 17).

    `first` and `second` are the compressed candidates in the order shown, already shuffled: nothing in the text shows
    which of them the teacher wrote. The student must answer the original question, not choose a candidate.
    """
    return _with_block(question_text, template.bcq_intro, (first, second), template)


def ncq_text(question_text: str, wrong_answers: Sequence[str], candidates: Sequence[str], template: Template) -> str:
    """The user turn of a negative candidate-included question (Fig 18).

    `wrong_answers` are the contents of the boxes, already without duplicates; when empty, the sentence with the list is
    left out. `candidates` are all compressed wrong rollouts of the student.
    """
    return _with_block(question_text, _ncq_intro(wrong_answers, template), candidates, template)


def compress_text(response: str) -> str:
    """The user turn that asks the frozen teacher to compress one response (Fig 16)."""
    return COMPRESS_PROMPT.replace(COMPRESS_RESPONSE_SLOT, neutralise(response).strip())


def _ncq_intro(wrong_answers: Sequence[str], template: Template) -> str:
    if not wrong_answers:
        return template.ncq_intro
    boxes = template.ncq_list_separator.join(rf"\boxed{{{neutralise(answer)}}}" for answer in wrong_answers)
    sentence = f"{template.ncq_list_open}{boxes}{template.ncq_list_close}"
    return f"{sentence} {template.ncq_intro}" if template.ncq_intro else sentence


def _with_block(question_text: str, intro: str, candidates: Sequence[str], template: Template) -> str:
    blocks = [f"{CANDIDATE_OPEN}\n{neutralise(text).strip()}\n{CANDIDATE_CLOSE}" for text in candidates]
    block = "\n".join([intro, *blocks] if intro else blocks)
    return BLANK_LINE.join((question_text, block, template.closer))


# Tags with a meaning for the model or a template. Special tokens of the form <|...|> need no list.
_TAG_NAMES = ("think", "tool_call", "tool_response", "candidate", "response", "summary", r"tts_\w++")
# Invisible characters count as white space. Possessive, so that a long run of it costs linear time.
_SPACE = r"[\s\u200b-\u200f\u2060\ufeff]*+"


def tag_pattern(names: Sequence[str]) -> re.Pattern[str]:
    """Finds tags of these names, opening, closing or empty, however they are spaced; its group is what `<>` enclose."""
    return re.compile(rf"<({_SPACE}/?{_SPACE}(?:{'|'.join(names)}){_SPACE}/?{_SPACE})>", re.IGNORECASE)


_TAG = tag_pattern(_TAG_NAMES)
_PIPE_BRACKET = re.compile(r"(?<=<)(?=\|)|(?<=\|)(?=>)")


UNMARKED = dict.fromkeys(map(ord, {IMAGE_MARK[0], IMAGE_MARK[-1], VIDEO_MARK[0], VIDEO_MARK[-1]}))
"""Removes the characters of marks from a text (`str.translate`)."""


def neutralise(text: str) -> str:
    """Makes a model's text harmless inside a prompt, and keeps it readable.

    A space separates `<|` and `|>` (so `|x|<|y|` stays readable, and no `<|...|>` token can be spelled);
    tags such as `</think>` or `< / CANDIDATE >` get square brackets; marks of images and videos, which would move those
    of the question, lose their private-use characters. Idempotent: a neutralised text does not change.
    """
    return _TAG.sub(r"[\1]", _PIPE_BRACKET.sub(" ", text.translate(UNMARKED)))
