"""Which responses a judge decides, what it reads of them, and what its ruling makes of a verdict."""

from __future__ import annotations

from zppo_jax.judge.prompt import Case
from zppo_jax.judge.verdict import Ruling
from zppo_jax.rewards.extract import answer_region, extract_answer
from zppo_jax.rewards.grade import JUDGED
from zppo_jax.rewards.verdict import Status, Verdict
from zppo_jax.types import Question


def left_open(question: Question, verdict: Verdict, unresolved: bool = False) -> bool:
    """Whether the rules leave a response to the judge.

    In training: every response to a gold of type `free_form` that is not literally the gold, with or without a box, as
    the judge is asked "instead" of a rule (App. D.1 of arXiv:2606.18216). `unresolved`, for evaluations ("Exact+Judge",
    App. B.2): also those to other golds that no rule could read or compare.
    """
    if question.answer_type in JUDGED:
        return not verdict.correct
    return unresolved and verdict.status != Status.OK


def case_of(response: str, question: Question, region: str) -> Case | None:
    r"""What the judge reads of a response; None if nothing of it counts, and it is wrong without a judge.

    Fig 9 allows both a snippet and a whole trajectory, and says: "If the final answer is missing due to answer format
    error, truncation, or other reasons, look inside thinking or reasoning". So the judge reads the content of the last
    box if there is one, as the paper's parser does it first; if there is none, all of the region that counts: the whole
    response with its thinking ("anywhere", the paper's), or what follows the last `</think>` ("final": thinking that is
    never closed is no answer).
    """
    answer, _ = extract_answer(response, region)
    text = (answer_region(response, region) or "").strip() if answer is None else answer
    return Case(question.text, str(question.answer), text, _options(question)) if text else None


def _options(question: Question) -> str:
    """The options of a multiple-choice question, one on each line behind its letter."""
    choices = question.options.get("choices", ())
    return "\n".join(f"{chr(ord('A') + place)}. {choice}" for place, choice in enumerate(choices))


_STATUSES = {
    Ruling.CORRECT: Status.OK,
    Ruling.WRONG: Status.OK,
    Ruling.MALFORMED: Status.JUDGE_MALFORMED,
    Ruling.FAILED: Status.NEEDS_JUDGE,
}


def ruled(answer: str | None, ruling: Ruling) -> Verdict:
    """The verdict on a response that was judged; undecided if the judge failed."""
    return Verdict(ruling is Ruling.CORRECT, _STATUSES[ruling], answer)
