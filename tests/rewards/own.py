"""A reward of one's own, for a run in tests/test_train.py."""

from __future__ import annotations

from zppo_jax.rewards import RewardQuestion


def even(response: str, question: RewardQuestion) -> bool:
    """Whether the response has an even number of characters."""
    assert question.answer
    return len(response) % 2 == 0
