"""Rewards: the verdict on a response, by rule, on the host. No jax in here."""

from zppo_jax.rewards.extract import extract_answer
from zppo_jax.rewards.function import FunctionPool, RewardQuestion
from zppo_jax.rewards.grade import ANSWER_TYPES
from zppo_jax.rewards.pool import Answer, ScoringPool
from zppo_jax.rewards.score import check_gold, score
from zppo_jax.rewards.verdict import UNDECIDED, Status, Verdict

__all__ = [
    "ANSWER_TYPES",
    "UNDECIDED",
    "Answer",
    "FunctionPool",
    "RewardQuestion",
    "ScoringPool",
    "Status",
    "Verdict",
    "check_gold",
    "extract_answer",
    "score",
]
