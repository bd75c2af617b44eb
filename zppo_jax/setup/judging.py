"""The judge of a configuration, and its metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from zppo_jax.config import Config
from zppo_jax.config.addresses import addresses_of
from zppo_jax.config.combinations import TEACHER
from zppo_jax.config.teacher import teacher_place
from zppo_jax.judge import Judge
from zppo_jax.judge.asking import ROLE, RemoteJudge
from zppo_jax.judge.cache import VerdictCache
from zppo_jax.parallel import Hosts
from zppo_jax.remote import Role
from zppo_jax.teacher.served import ROLE as TEACHER_ROLE

CACHE_FILE = "verdicts.sqlite"


def make_judge(config: Config, teacher: Path, folder: Path, say: Callable[[str], None]) -> Judge | None:
    """Makes the judge that `judge.endpoint` names; None if it is empty. If it is a teacher in this process, it gets its
    asker when that is loaded. With several hosts each has its own judge, and its own cache in its `folder`: a host's
    questions are the same whenever a step is made again."""
    chosen = config.judge
    if not chosen.endpoint:
        return None
    if chosen.endpoint != TEACHER:
        model, asker = chosen.model, _remote(config, chosen.endpoint, chosen.model, ROLE, say)
    elif teacher_place(config) == "served":
        model = f"teacher {config.teacher.model}"
        role = dataclasses.replace(ROLE, setting=TEACHER_ROLE.setting, key_variable=TEACHER_ROLE.key_variable)
        asker = _remote(config, config.teacher.path, config.teacher.model, role, say)
    else:
        model, asker = f"teacher {config.teacher.path or teacher.name}", None
    return Judge(VerdictCache(folder / CACHE_FILE, say), model, chosen.max_tokens, chosen.deadline_seconds, asker)


def _remote(config: Config, addresses: str, model: str, role: Role, say: Callable[[str], None]) -> RemoteJudge:
    chosen = config.judge
    return RemoteJudge(
        addresses_of(addresses),
        model,
        timeout_seconds=chosen.timeout_seconds,
        max_tokens=chosen.max_tokens,
        thinking=chosen.thinking == "endpoint",
        concurrency=chosen.concurrency,
        retries=chosen.retries,
        report=say,
        role=role,
    )


def metrics(judge: Judge, hosts: Hosts) -> dict[str, float]:
    """The counts of a step, summed over all hosts, and the longest wait. Collective."""
    parts = hosts.gather(judge.counts() | {"seconds": judge.seconds}, "the judge's counts")
    found: dict[str, float] = {f"judge/{name}": sum(part[name] for part in parts) for name in judge.counts()}
    return found | {"time/judge": max(part["seconds"] for part in parts)}
