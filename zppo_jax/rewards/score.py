"""`score`: the binary outcome reward of one response; `check_gold`: whether a gold can be scored at all."""

from __future__ import annotations

import os
import threading
from typing import Any

from zppo_jax.rewards import expression, gates
from zppo_jax.rewards.grade import Gold, Pending, gold_fault, grade, max_chars, require_known
from zppo_jax.rewards.pool import ScoringPool
from zppo_jax.rewards.verdict import Verdict

_DEFAULT_WORKERS = 2

_default_pool: ScoringPool | None = None
_default_lock = threading.Lock()


def default_pool() -> ScoringPool:
    """The pool behind `score`, made on first use and ended with the interpreter. Its children start when needed."""
    global _default_pool
    with _default_lock:
        if _default_pool is None:
            _default_pool = ScoringPool(_DEFAULT_WORKERS)
        return _default_pool


def _forget_default_pool() -> None:
    """Drop the pool in a forked process, which must not share its parent's children, nor a lock that a thread held."""
    global _default_pool, _default_lock
    _default_pool, _default_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_default_pool)


def score(response: str, gold: Gold, answer_type: str = "math", region: str = "final", **options: Any) -> Verdict:
    r"""Score one response against its gold (App. D.1 of arXiv:2606.18216: 1 iff the boxed answer matches, else 0).

    Args:
      response: the whole text of the response, thinking included.
      gold: the gold answer; "list_any", "anls", "ordering" and "number_list" also take a sequence or a JSON list.
      answer_type: "math", "string", "search", "multiple_choice", "numeric", "integer", "counting", "list_any",
        "ordering", "number_list", "anls", "grounding", "clicking" or "free_form".
      region: "final" (after the last closed `</think>`) or "anywhere" (the paper's grader).
      **options: `choices` (multiple_choice), `tolerance` (numeric, ordering, number_list), `threshold` (anls),
        `min_iou` (grounding).

    Returns:
      A verdict, within seconds whatever the response holds. An outcome that the response caused is right or wrong; if
      the machinery or the gold is at fault, `decided` is False.

    Raises:
      ValueError: on an unknown answer type or region. Model text never raises.
    """
    verdict = grade(response, gold, answer_type, region, **options)
    if not isinstance(verdict, Pending):
        return verdict
    return default_pool().score(response, gold, answer_type, region, **options)


def check_gold(gold: Gold, answer_type: str, **options: Any) -> str | None:
    """The reason why a gold cannot be scored (it does not verify against itself); None if it can.

    For the data build: a question with such a gold would always give zero reward. Math golds that need the computer
    algebra system are parsed by the default pool's worker.
    """
    require_known(answer_type)
    written = gold if isinstance(gold, str) else ", ".join(map(str, gold))
    if not written.strip():
        return "the gold is empty"
    if len(written) > max_chars(answer_type):
        return f"the gold has {len(written)} characters, more than the {max_chars(answer_type)} that are scored"
    if answer_type == "math":
        return _check_math(written)
    return gold_fault(gold, answer_type, **options)


def _check_math(gold: str) -> str | None:
    gold = expression.canonical(gold)
    if status := gates.refusal(gold):
        return f"the gold {gold!r} is {status}: too deep, too large or unbalanced for the grader"
    if expression.is_sentence(gold):
        return f"the gold {gold!r} mixes words with mathematics: only its own spelling would be right"
    if not expression.needs_parser(gold):
        return None
    correct, status = default_pool().compare(gold, gold)
    # Such a gold would accept only a verbatim copy: every other way to write it would be a false negative.
    return None if correct else f"the parser cannot read the gold {gold!r} ({status})"
