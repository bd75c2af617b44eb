r"""The kinds of help with a hard question: BCQ and NCQ (Figs 17 and 18 of arXiv:2606.18216) as rows of one table.

A row says which responses a prompt shows, what the teacher writes about each, and how the prompt and the beginning of
the answer are built from them. A new kind of prompt is a row here, with its wording in `prompts.py`; nothing else
changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from zppo_jax.zppo import prompts
from zppo_jax.zppo.summaries import SUMMARY, Candidate, Digest


class Turn(NamedTuple):
    """The student's input: the whole user turn, and the beginning of the answer if it is given."""

    text: str
    opening: str = ""


@dataclasses.dataclass(frozen=True)
class Help:
    """A way to help with a hard question; a row of `HELPS`.

    `choose(wrong, teacher_correct, rng)` picks the candidates in the order in which they are shown, none if the
    question does not qualify; `teacher_correct` is empty unless `needs_teacher`, so that a row without it cannot leak a
    teacher's trace. `digest` is the text that the teacher writes about a candidate. `build(question_text, candidates,
    texts, template)` makes the turn, where `texts` are the digests.
    """

    kind: str
    needs_teacher: bool
    choose: Callable[[Sequence[Candidate], Sequence[Candidate], np.random.Generator], tuple[Candidate, ...]]
    digest: Digest
    build: Callable[[str, Sequence[Candidate], Sequence[str], prompts.Template], Turn]


def _choose_bcq(
    wrong: Sequence[Candidate], teacher_correct: Sequence[Candidate], rng: np.random.Generator
) -> tuple[Candidate, ...]:
    """Chooses one correct response of the teacher and one wrong one of the student, both uniformly, in random order."""
    if not wrong or not teacher_correct:
        return ()
    pair = (teacher_correct[int(rng.integers(len(teacher_correct)))], wrong[int(rng.integers(len(wrong)))])
    return pair if rng.integers(2) == 0 else pair[::-1]


def _build_bcq(
    question_text: str, candidates: Sequence[Candidate], texts: Sequence[str], template: prompts.Template
) -> Turn:
    del candidates
    first, second = texts
    return Turn(prompts.bcq_text(question_text, first, second, template))


def _choose_ncq(
    wrong: Sequence[Candidate], teacher_correct: Sequence[Candidate], rng: np.random.Generator
) -> tuple[Candidate, ...]:
    """Chooses every wrong rollout, also those without a parsable answer and those that repeat another."""
    del teacher_correct, rng
    return tuple(wrong)


def _build_ncq(
    question_text: str, candidates: Sequence[Candidate], texts: Sequence[str], template: prompts.Template
) -> Turn:
    return Turn(prompts.ncq_text(question_text, wrong_answers(candidates), texts, template))


def wrong_answers(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """The parsed answers as an NCQ prompt lists them: without duplicates, in the order of first appearance.

    The paper does not say which equality it uses. Here two answers are equal if their listed texts are, with white
    space collapsed (so that an answer with line breaks does not end the sentence). Unparsable answers are left out.
    """
    listed = (prompts.neutralise(" ".join(candidate.answer.split())) for candidate in candidates if candidate.answer)
    return tuple(dict.fromkeys(answer for answer in listed if answer))


HELPS: dict[str, Help] = {
    row.kind: row
    for row in (
        Help("bcq", needs_teacher=True, choose=_choose_bcq, digest=SUMMARY, build=_build_bcq),
        Help("ncq", needs_teacher=False, choose=_choose_ncq, digest=SUMMARY, build=_build_ncq),
    )
}
"""All kinds of help, in the order in which a question's prompts fill the post-cap (BCQ before NCQ)."""
