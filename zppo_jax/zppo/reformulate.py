r"""From a hard question to its BCQ and NCQ prompts (Algorithm 1, "build prompts"; Figs 17 and 18 of arXiv:2606.18216).

Two stages, because between them stands a batched device call, the compression by the teacher: `choose_candidates` says
which responses are to be shown, `build_prompts` writes the prompts from their summaries. Teacher text enters here and
ends here: in the text of a BCQ prompt, which the student then answers afresh. It is never a rollout to learn from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from zppo_jax import prompts
from zppo_jax.rewards import Status
from zppo_jax.types import Group, Kind, Prompt, Rollout
from zppo_jax.zppo import keys
from zppo_jax.zppo.summaries import Author, Candidate


@dataclasses.dataclass(frozen=True)
class Reformulation:
    """A way to write a hard question anew: a row of `REFORMULATIONS`.

    `choose(wrong, teacher_correct, rng)` picks the candidates in the order of showing, none when the question does not
    qualify; `teacher_correct` is empty unless `needs_teacher`, so that a row without it cannot leak a teacher's trace.
    `render(question_text, candidates, summaries, template)` writes the user turn.
    """

    kind: Kind
    needs_teacher: bool
    choose: Callable[[Sequence[Candidate], Sequence[Candidate], np.random.Generator], tuple[Candidate, ...]]
    render: Callable[[str, Sequence[Candidate], Sequence[str], prompts.Template], str]


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """The candidates of one hard question by reformulation name, in the order in which the prompts are built."""

    parent: Prompt
    step: int
    candidates: Mapping[str, tuple[Candidate, ...]]

    @property
    def needed(self) -> tuple[Candidate, ...]:
        """The candidates that need a summary, each once (the wrong one of a BCQ prompt is in the NCQ prompt too)."""
        return tuple(dict.fromkeys(candidate for chosen in self.candidates.values() for candidate in chosen))


def _choose_bcq(
    wrong: Sequence[Candidate], teacher_correct: Sequence[Candidate], rng: np.random.Generator
) -> tuple[Candidate, ...]:
    """One correct response of the teacher and one wrong of the student, both uniform, in random order."""
    if not wrong or not teacher_correct:
        return ()
    pair = (teacher_correct[int(rng.integers(len(teacher_correct)))], wrong[int(rng.integers(len(wrong)))])
    return pair if rng.integers(2) == 0 else pair[::-1]


def _render_bcq(
    question_text: str, candidates: Sequence[Candidate], summaries: Sequence[str], template: prompts.Template
) -> str:
    del candidates
    first, second = summaries
    return prompts.bcq_text(question_text, first, second, template)


def _choose_ncq(
    wrong: Sequence[Candidate], teacher_correct: Sequence[Candidate], rng: np.random.Generator
) -> tuple[Candidate, ...]:
    """Every wrong rollout, also those without a parsable answer and those that repeat another."""
    del teacher_correct, rng
    return tuple(wrong)


def _render_ncq(
    question_text: str, candidates: Sequence[Candidate], summaries: Sequence[str], template: prompts.Template
) -> str:
    return prompts.ncq_text(question_text, wrong_answers(candidates), summaries, template)


REFORMULATIONS: dict[str, Reformulation] = {
    "bcq": Reformulation("bcq", needs_teacher=True, choose=_choose_bcq, render=_render_bcq),
    "ncq": Reformulation("ncq", needs_teacher=False, choose=_choose_ncq, render=_render_ncq),
}
"""All reformulations, in the order in which a question's prompts take the slots of the post-cap (BCQ before NCQ)."""


def wrong_answers(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """The parsed answers as an NCQ prompt lists them: without duplicates, in the order of first appearance.

    The paper does not say which equality it uses; here it is that of the text as listed, white space collapsed (which
    also keeps an answer with line breaks from ending the sentence). Unparsable answers are left out.
    """
    listed = (prompts.neutralise(" ".join(candidate.answer.split())) for candidate in candidates if candidate.answer)
    return tuple(dict.fromkeys(answer for answer in listed if answer))


def choose_candidates(
    group: Group, teacher: Sequence[Rollout], reformulations: Collection[str], seed: int, step: int
) -> Choice:
    """Stage one: which responses the prompts of a hard question will show.

    `group` is the plain or replayed group of the question; `teacher` are the teacher's rollouts on it, of which only
    the correct ones are used (there may be none: then there is no BCQ prompt this visit). Undecided rollouts are never
    shown. Every draw comes from (seed, step, question). ValueError for an unknown reformulation or for a group that is
    itself reformulated.
    """
    check_reformulations(reformulations)
    if group.prompt.kind not in ("plain", "replay"):
        raise ValueError(f"group {group.prompt.uid!r} is a {group.prompt.kind} group; only plain ones are reformulated")
    answer_type = group.prompt.question.answer_type

    def candidates_of(rollouts: Sequence[Rollout], author: Author, correct: bool) -> list[Candidate]:
        shown = [rollout for rollout in rollouts if rollout.decided and rollout.correct == correct]
        return [Candidate(rollout.text, _listable(rollout), author, answer_type) for rollout in shown]

    wrong, teacher_correct = candidates_of(group.rollouts, "student", False), candidates_of(teacher, "teacher", True)
    candidates: dict[str, tuple[Candidate, ...]] = {}
    for name, row in REFORMULATIONS.items():
        if name in reformulations:
            rng = keys.generator(row.kind, seed, step, group.prompt.question.id)
            chosen = row.choose(wrong, teacher_correct if row.needs_teacher else (), rng)
            if chosen:
                candidates[name] = chosen
    return Choice(group.prompt, step, candidates)


def _listable(rollout: Rollout) -> str | None:
    """The parsed answer. One that is too long to be graded counts as unparsed: nothing bounds it but the response."""
    return None if rollout.status == Status.TOO_LONG else rollout.answer


def build_prompts(choice: Choice, summaries: Callable[[Candidate], str], template: prompts.Template) -> list[Prompt]:
    """Stage two: the prompts of a hard question, BCQ first, each under a uid of its own.

    `summaries` gives the compressed text of each of `choice.needed` (a dict's `__getitem__` will do). The question
    goes along unchanged, so the new rollouts are scored against its original gold answer.
    """
    built: list[Prompt] = []
    question = choice.parent.question
    for name, candidates in choice.candidates.items():
        row = REFORMULATIONS[name]
        text = row.render(question.text, candidates, [summaries(candidate) for candidate in candidates], template)
        uid = prompts.prompt_uid(choice.step, question.id, row.kind)
        built.append(Prompt(uid=uid, kind=row.kind, question=question, text=text, parent=choice.parent.uid))
    return built


def reformulate(
    group: Group,
    teacher: Sequence[Rollout],
    summaries: Callable[[Candidate], str],
    template: prompts.Template,
    seed: int,
    step: int,
    reformulations: Collection[str] = tuple(REFORMULATIONS),
) -> list[Prompt]:
    """Both stages at once: the BCQ and NCQ prompts of one hard question (Algorithm 1)."""
    return build_prompts(choose_candidates(group, teacher, reformulations, seed, step), summaries, template)


def check_reformulations(names: Collection[str]) -> None:
    """Refuses names that are no row of `REFORMULATIONS`."""
    unknown = [name for name in names if name not in REFORMULATIONS]
    if unknown:
        raise ValueError(f"unknown reformulations {unknown}; use some of {', '.join(REFORMULATIONS)}")
