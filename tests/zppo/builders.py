"""Small groups for the tests of the method's host side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zppo_jax.types import Features, Group, Outcome, Prompt, Question, Rollout

NO_FEATURES = Features(
    token_ids_T=np.zeros(0, np.int32),
    token_types_T=np.zeros(0, np.int32),
    positions_3T=np.zeros((3, 0), np.int32),
    rope_delta=0,
    patches=np.zeros((0, 1536), np.uint8),
    grid_thw_N3=np.zeros((0, 3), np.int32),
)


def make_rollout(text: str, correct: bool, answer: str | None = None) -> Rollout:
    nothing = np.zeros(0, np.float32)
    return Rollout(nothing.astype(np.int32), nothing, "stop", text, correct, answer, "")


def make_prompt(question_id: str = "q", kind: str = "plain", text: str = "How many?", step: int = 0) -> Prompt:
    question = Question(id=question_id, text=text, images=(), answer="7", answer_type="math")
    return Prompt(uid=f"{step}/{question_id}/{kind}", kind=kind, question=question, text=text)


def make_group(
    rollouts: Sequence[Rollout], question_id: str = "q", kind: str = "plain", text: str = "How many?"
) -> Group:
    return Group(make_prompt(question_id, kind, text), NO_FEATURES, tuple(rollouts))


def group_with(question_id: str, num_correct: int, size: int = 8, kind: str = "plain") -> Group:
    """A group of that many correct and wrong rollouts."""
    rollouts = [
        make_rollout(f"student {question_id} {index}", index < num_correct, str(index)) for index in range(size)
    ]
    return make_group(rollouts, question_id, kind)


def outcome_with(question_id: str, num_correct: int, size: int = 8, kind: str = "plain") -> Outcome:
    """The outcome of such a group, which every host has."""
    return group_with(question_id, num_correct, size, kind).outcome()
