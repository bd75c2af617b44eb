"""An example of `reward.function`: right by the rules, and no longer than the question allows.

python -m zppo_jax.main --config=configs/tiny.py --config.reward.function=experiments.own_reward.rewards:brief
"""

from __future__ import annotations

from zppo_jax.rewards import RewardQuestion, Verdict
from zppo_jax.rewards.grade import grade

MAX_CHARACTERS = 2000


def brief(response: str, question: RewardQuestion) -> bool:
    """1 for a right answer in a response of at most `max_characters` (a column of the data, else 2,000)."""
    verdict = grade(response, question.answer, question.answer_type, **question.options)
    limit = int(question.metadata.get("max_characters", MAX_CHARACTERS))
    return isinstance(verdict, Verdict) and verdict.correct and len(response) <= limit
