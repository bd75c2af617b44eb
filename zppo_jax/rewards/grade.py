"""Route a response to the rule of its answer type; nothing here starts a process or evaluates text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from zppo_jax.rewards import boxes, expression, gates, lists, numeric, text
from zppo_jax.rewards.choices import choices_match
from zppo_jax.rewards.extract import extract_answer
from zppo_jax.rewards.verdict import MalformedAnswer, Status, Verdict

Gold = str | Sequence[str]

_MAX_JSON_CHARS = 4096
_ANLS_THRESHOLD = 0.5


class Pending(NamedTuple):
    """A math answer that only the worker can compare with its gold; `pairs` are (gold, answer) in normal form.

    The answer is right if one of the pairs is equal; a second pair is the paper's second grading.
    """

    answer: str
    pairs: tuple[tuple[str, str], ...]


def _strings(gold: str, answer: str) -> bool:
    return text.strings_match(gold, answer)


def _multiple_choice(gold: str, answer: str, choices: Sequence[str] = ()) -> bool:
    return choices_match(gold, answer, choices, expression.surely_equal)


def _anls(gold: Gold, answer: str, threshold: float = _ANLS_THRESHOLD) -> bool:
    return text.anls(lists.golds_of(gold), answer) >= threshold


# "math" and "free_form" are not here: they have outcomes other than right and wrong.
_RULES: dict[str, Callable[..., bool]] = {
    "string": _strings,
    "search": _strings,
    "multiple_choice": _multiple_choice,
    "numeric": numeric.numbers_match,
    "integer": numeric.integers_match,
    "counting": numeric.integers_match,
    "list_any": lists.any_matches,
    "ordering": lists.sequences_match,
    "number_list": lists.sequences_match,
    "anls": _anls,
    "grounding": boxes.boxes_match,
    "clicking": boxes.click_matches,
}
JUDGED: frozenset[str] = frozenset({"free_form"})
"""Types that rules decide only if the strings are equal: everything else needs a judge."""
ANSWER_TYPES: tuple[str, ...] = ("math", *_RULES, *JUDGED)


OPTIONS: dict[str, dict[str, type]] = {
    "multiple_choice": {"choices": list},
    "numeric": {"tolerance": float},
    "ordering": {"tolerance": float},
    "number_list": {"tolerance": float},
    "anls": {"threshold": float},
    "grounding": {"min_iou": float},
}
"""The options that a type's rule takes, and their types (a list is of texts); the other types take none."""


def require_known(answer_type: str) -> None:
    """Raises ValueError, naming the known types, for an unknown one."""
    if answer_type not in ANSWER_TYPES:
        raise ValueError(f"answer_type {answer_type!r} is unknown: use one of {', '.join(ANSWER_TYPES)}")


def max_chars(answer_type: str) -> int:
    """The length of the longest answer that is graded. JSON of many boxes may be longer than a short answer."""
    return _MAX_JSON_CHARS if answer_type in ("grounding", "clicking") else gates.MAX_CHARS


_AS_STRINGS = ("string", "search", "list_any", "anls", "multiple_choice", "free_form")
"""Types whose rule compares a long answer in linear time."""
# A right answer in another spelling is longer than its gold by a factor, at most; what is longer still is wrong.
_MAX_FACTOR = 8
_MAX_NORMALISED = 16_384
"""Beyond this length only a copy of the gold is right, but for white space."""


def _grade_long(answer: str, gold: Gold, answer_type: str, options: dict[str, Any]) -> Verdict | Pending:
    """The verdict on an answer beyond `max_chars`: right if it is its gold in nearly the same spelling, else wrong.

    Undecided if it might be its gold in another spelling: a math gold that is itself too long for a parser.
    """
    if answer == gold:
        return Verdict(True, Status.OK, answer)
    short = " ".join(answer.split())
    if len(short) <= max_chars(answer_type):
        return grade_answer(short, gold, answer_type, **options)._replace(answer=answer)
    longest = sum(map(len, [gold] if isinstance(gold, str) else gold)) + sum(map(len, options.get("choices", ())))
    same = isinstance(gold, str) and " ".join(gold.split()) == short
    if not same and len(short) <= min(_MAX_FACTOR * longest + gates.MAX_CHARS, _MAX_NORMALISED):
        if answer_type == "math":
            same = expression.same_text(str(gold), short)
        elif answer_type in _AS_STRINGS:
            same = grade_answer(short, gold, answer_type, **options)[0] is True
    if same:
        return Verdict(True, Status.OK, answer)
    out_of_reach = answer_type == "math" and len(str(gold)) > gates.MAX_CHARS
    return Verdict(False, Status.ERROR if out_of_reach else Status.TOO_LONG, answer)


def grade(
    response: str, gold: Gold, answer_type: str = "math", region: str = "final", **options: Any
) -> Verdict | Pending:
    """Extract the answer and compare it with the gold by the rule of its type; see `score` for the types."""
    require_known(answer_type)
    answer, status = extract_answer(response, region)
    if answer is None:
        return Verdict(False, status, None)
    if len(answer) > max_chars(answer_type):
        return _grade_long(answer, gold, answer_type, options)
    graded = grade_answer(answer, gold, answer_type, **options)
    return _graded_again(graded, gold, answer_type, options) if region == "anywhere" else graded


def grade_answer(answer: str, gold: Gold, answer_type: str, **options: Any) -> Verdict | Pending:
    """Compare an extracted answer with the gold. The status is ERROR if that would need a usable gold."""
    if answer_type == "math":
        return _math(answer, gold, **options)
    if answer_type == "free_form":
        same = text.strings_match(str(gold), answer)
        return Verdict(same, Status.OK if same else Status.NEEDS_JUDGE, answer)
    try:
        return Verdict(_RULES[answer_type](gold, answer, **options), Status.OK, answer)
    except MalformedAnswer:
        fault = gold_fault(gold, answer_type, **options)
        return Verdict(False, Status.ERROR if fault else Status.MALFORMED, answer)


def _math(answer: str, gold: Gold) -> Verdict | Pending:
    if len(str(gold)) > gates.MAX_CHARS:
        return Verdict(False, Status.ERROR, answer)
    decision = expression.decide(str(gold), answer)
    if decision.pending:
        return Pending(answer, (decision.pending,))
    return Verdict(decision.correct, decision.status, answer)


def _without_signs(item: object) -> str:
    return numeric.strip_degree_percent(str(item))


def _graded_again(first: Verdict | Pending, gold: Gold, answer_type: str, options: dict[str, Any]) -> Verdict | Pending:
    """The paper's second grading of what the first does not accept: without degree and percent signs (App. D.1)."""
    answer = first.answer or ""
    plain_answer = numeric.strip_degree_percent(answer)
    golds = [gold] if isinstance(gold, str) else list(gold)
    plain_golds = [numeric.strip_degree_percent(one) for one in map(str, golds)]
    same = (plain_answer, plain_golds) == (answer, golds)
    if (isinstance(first, Verdict) and first.correct) or same or not plain_answer or not all(plain_golds):
        return first
    second = grade_answer(
        plain_answer, plain_golds[0] if isinstance(gold, str) else plain_golds, answer_type, **options
    )
    if isinstance(second, Verdict):
        return second._replace(answer=answer) if second.correct else first
    return Pending(answer, (first.pairs if isinstance(first, Pending) else ()) + second.pairs)


def gold_fault(gold: Gold, answer_type: str, **options: Any) -> str | None:
    """The fault of a gold that rejects its own right answers; None if it has none. Not for type "math"."""
    rule = _RULES.get(answer_type, _strings)
    try:
        accepted = all(rule(gold, answer, **options) for answer in _right_answers(gold, answer_type))
    except MalformedAnswer as error:
        return f"the gold {gold!r} cannot be read as {answer_type}: {error}"
    return None if accepted else f"the gold {gold!r} does not verify against itself as {answer_type}"


def _right_answers(gold: Gold, answer_type: str) -> Sequence[str]:
    """The answers that a usable gold must accept: itself, each of its alternatives, or the middle of its box."""
    if answer_type in ("list_any", "anls"):
        return lists.golds_of(gold)
    if answer_type == "clicking":
        return [f"[{(x1 + x2) / 2}, {(y1 + y2) / 2}]" for x1, y1, x2, y2 in boxes.parse_boxes(str(gold))]
    if answer_type in ("ordering", "number_list"):
        return [", ".join(lists.sequence_items(gold))]
    return [str(gold)]
