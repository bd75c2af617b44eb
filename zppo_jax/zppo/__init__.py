"""The method's host side: the replay buffer, the selection of hard questions, and their reformulation."""

from __future__ import annotations

from zppo_jax.zppo import select
from zppo_jax.zppo.helps import HELPS, Help, Turn
from zppo_jax.zppo.methods import METHODS, Method, get_method
from zppo_jax.zppo.reformulate import Choice, build_prompts, choose_candidates, reformulate
from zppo_jax.zppo.replay import Refresh, ReplayBuffer
from zppo_jax.zppo.summaries import SUMMARY, Candidate, Digest, accept_summary, fallback_summary

__all__ = [
    "HELPS",
    "METHODS",
    "SUMMARY",
    "Candidate",
    "Choice",
    "Digest",
    "Help",
    "Method",
    "Refresh",
    "ReplayBuffer",
    "Turn",
    "accept_summary",
    "build_prompts",
    "choose_candidates",
    "fallback_summary",
    "get_method",
    "reformulate",
    "select",
]
