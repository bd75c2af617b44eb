"""The judge: a model that decides what rules cannot, from question, gold and response (Fig 9, arXiv:2606.18216)."""

from zppo_jax.judge.cases import case_of, left_open, ruled
from zppo_jax.judge.judge import Asker, Judge
from zppo_jax.judge.prompt import Case, judge_text
from zppo_jax.judge.verdict import Ruling
from zppo_jax.remote import Unanswered

__all__ = ["Asker", "Case", "Judge", "Ruling", "Unanswered", "case_of", "judge_text", "left_open", "ruled"]
