"""The number of questions in a step: the rules that check a configuration and that the code applies.

A fault is one line that names key, value and fix, or None.
"""

from __future__ import annotations

import fractions
import math


def data_fault(num_questions: int, questions_per_step: int) -> str | None:
    """The fault of a data set of `num_questions` questions that cannot fill a step."""
    if num_questions == 0:
        return "data.num_questions = 0: the source is empty; set data.num_questions to 1 or more"
    if questions_per_step < 1:
        return f"rollout.questions_per_step = {questions_per_step}: a step needs questions; set it to 1 or more"
    if questions_per_step > num_questions:
        return (
            f"data.num_questions = {num_questions} cannot fill one step of rollout.questions_per_step = "
            f"{questions_per_step}: raise data.num_questions to {questions_per_step} or more, or lower "
            f"rollout.questions_per_step to {num_questions}"
        )
    return None


def share_fault(key: str, fraction: float, questions_per_step: int) -> str | None:
    """The fault of a fraction that gives an empty share of a step; `key` is the name of the fraction.

    A positive fraction that floors to 0 is a fault: it would silently switch off a part of the method.
    """
    if not 0 <= fraction < math.inf:
        return f"{key} = {fraction:g} is not a share of the new questions: give 0 or a positive number"
    if questions_per_step < 1:
        return f"rollout.questions_per_step = {questions_per_step} has no share {key}: give 1 or more"
    if fraction > 0 and _floor(fraction, questions_per_step) == 0:
        return (
            f"{key} = {fraction:g} of rollout.questions_per_step = {questions_per_step} is less than one question: "
            f"raise rollout.questions_per_step to {math.ceil(1 / _as_written(fraction))} or {key} to "
            f"{math.ceil(1e6 / questions_per_step) / 1e6:g}, or set {key}=0"
        )
    return None


def share_of_step(key: str, fraction: float, questions_per_step: int) -> int:
    """The share in whole questions, floor(fraction * questions_per_step); raises ValueError for a `share_fault`."""
    fault = share_fault(key, fraction, questions_per_step)
    if fault is not None:
        raise ValueError(fault)
    return _floor(fraction, questions_per_step)


def _floor(fraction: float, questions_per_step: int) -> int:
    return math.floor(_as_written(fraction) * questions_per_step)


def _as_written(fraction: float) -> fractions.Fraction:
    """The decimal fraction as written: in binary 0.29 * 100 is below 29, and its floor would be 28."""
    return fractions.Fraction(str(float(fraction)))
