r"""Builds the prompts that help with a hard question (Algorithm 1 of arXiv:2606.18216, "build prompts").

There are two stages, because the teacher writes between them, in one batched call: `choose_candidates` chooses the
responses to show, `build_prompts` builds the prompts from their digests. Teacher text is used only here, in the text of
a prompt, which the student then answers itself. It is never a rollout to learn from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence

from zppo_jax.keys import RandomStream
from zppo_jax.rewards import Status
from zppo_jax.types import PLAIN_KINDS, Group, Prompt, Response, Shown, prompt_uid
from zppo_jax.zppo import prompts
from zppo_jax.zppo.helps import HELPS, Help
from zppo_jax.zppo.summaries import Author, Candidate, Digest


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """The candidates of one hard question by kind of help, in the order of its prompts."""

    parent: Prompt
    step: int
    candidates: Mapping[str, tuple[Candidate, ...]]

    @property
    def needed(self) -> tuple[tuple[Digest, Candidate], ...]:
        """The digests that the prompts need, each once (a BCQ prompt's wrong candidate is in the NCQ prompt too)."""
        pairs = ((HELPS[kind].digest, one) for kind, chosen in self.candidates.items() for one in chosen)
        return tuple(dict.fromkeys(pairs))


def choose_candidates(
    group: Group, teacher: Sequence[Response], helps: Collection[str], seed: int, step: int
) -> Choice:
    """Stage one: chooses the responses that the prompts of a hard question will show.

    `group` is the plain or replayed group of the question; `teacher` are the teacher's responses to it, of which only
    the correct ones are used (if there are none, prompts that need one are not built in this visit). Undecided
    responses are never shown. Every draw comes from (seed, step, question). Raises ValueError for an unknown kind of
    help or for a group that is itself reformulated.
    """
    check_helps(helps)
    if group.prompt.kind not in PLAIN_KINDS:
        raise ValueError(f"group {group.prompt.uid!r} is a {group.prompt.kind} group; only plain ones are reformulated")
    question = group.prompt.question
    wrong = _candidates(group.rollouts, "student", False, question.answer_type)
    teacher_correct = _candidates(teacher, "teacher", True, question.answer_type)
    candidates: dict[str, tuple[Candidate, ...]] = {}
    for row in _rows(helps):
        rng = RandomStream(seed, step, row.kind).generator(question.id)
        chosen = row.choose(wrong, teacher_correct if row.needs_teacher else (), rng)
        if chosen:
            candidates[row.kind] = chosen
    return Choice(group.prompt, step, candidates)


def _rows(helps: Collection[str]) -> list[Help]:
    return [row for kind, row in HELPS.items() if kind in helps]


def _candidates(responses: Sequence[Response], author: Author, correct: bool, answer_type: str) -> list[Candidate]:
    shown = [response for response in responses if response.decided and response.correct == correct]
    return [Candidate(response.text, _listable(response), author, answer_type) for response in shown]


def _listable(response: Response) -> str | None:
    """The parsed answer; None if it is too long to be graded, since only the response's length bounds it."""
    return None if response.status == Status.TOO_LONG else response.answer


def build_prompts(
    choice: Choice, written: Callable[[Digest, Candidate], str | None], template: prompts.Template
) -> list[Prompt]:
    """Stage two: builds the prompts of a hard question, BCQ first, each with its own uid.

    `written` gives the text to show for each of `choice.needed`; a prompt that needs a text that is None is left
    out. The question stays unchanged, so the new rollouts are scored against its original gold answer.
    """
    built: list[Prompt] = []
    question = choice.parent.question
    for kind, candidates in choice.candidates.items():
        row = HELPS[kind]
        texts = [text for one in candidates if (text := written(row.digest, one)) is not None]
        if len(texts) < len(candidates):
            continue
        turn = row.build(question.text, candidates, texts, template)
        shown = (Shown(one.author, one.text, one.answer, text) for one, text in zip(candidates, texts, strict=True))
        uid = prompt_uid(choice.step, question.id, kind)
        built.append(Prompt(uid, kind, question, turn.text, choice.parent.uid, turn.opening, tuple(shown)))
    return built


def reformulate(
    group: Group,
    teacher: Sequence[Response],
    summaries: Callable[[Candidate], str],
    template: prompts.Template,
    seed: int,
    step: int,
    reformulations: Collection[str] = tuple(HELPS),
) -> list[Prompt]:
    """Runs both stages: builds the BCQ and NCQ prompts of one hard question (Algorithm 1).

    `summaries` gives the text to show for a candidate, whatever its digest.
    """
    choice = choose_candidates(group, teacher, reformulations, seed, step)
    return build_prompts(choice, lambda _, candidate: summaries(candidate), template)


def check_helps(kinds: Collection[str]) -> None:
    """Raises ValueError for kinds that are not rows of `HELPS`."""
    unknown = [kind for kind in kinds if kind not in HELPS]
    if unknown:
        raise ValueError(f"unknown kinds of help {unknown}; use some of {', '.join(HELPS)}")
