"""What the hosts of a run agree on in a step: whose rollouts were right, which prompts fit the cap, what was done.

Each host gives what it knows of its own groups and learns the rest; from there all take the same decisions by the same
pure functions. With one host everything is its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from zppo_jax.parallel import Hosts
from zppo_jax.rollout.statistics import Statistics
from zppo_jax.types import Group, Outcome, Prompt
from zppo_jax.zppo import select


def plain_outcomes(hosts: Hosts, groups: Sequence[Group]) -> list[Outcome]:
    """The outcomes of all hosts' plain groups in the order in which one host would have them: they were dealt."""
    own = [dataclasses.asdict(group.outcome(hosts.index)) for group in groups]
    return [_outcome(row) for row in hosts.gather_dealt(own, "the plain rollouts")]


def augmented_outcomes(hosts: Hosts, groups: Sequence[Group], kept: Sequence[str]) -> list[Outcome]:
    """The outcomes of all BCQ and NCQ groups, each a host's own as its question is, in the order of the `kept` uids."""
    own = [dataclasses.asdict(group.outcome(hosts.index)) for group in groups]
    rows = [row for part in hosts.gather(own, "the rollouts on reformulated prompts") for row in part]
    place = {uid: number for number, uid in enumerate(kept)}
    return sorted(map(_outcome, rows), key=lambda outcome: place[outcome.uid])


def within_cap(
    hosts: Hosts, chosen: Sequence[Outcome], built: Sequence[Sequence[Prompt]], limit: int
) -> tuple[list[Prompt], list[str]]:
    """The post-cap over all hosts: (this host's prompts within it, the uids of all that are within it, in order).

    `chosen` are the questions of all hosts in pre-cap order, `built` the prompts of this host's own among them.
    """
    own = [[[prompt.uid, prompt.kind] for prompt in prompts] for prompts in built]
    parts = [iter(part) for part in hosts.gather(own, "the reformulated prompts")]
    listed = [[select.Listed(*row) for row in next(parts[outcome.host], ())] for outcome in chosen]
    kept = [prompt.uid for prompt in select.post_cap(listed, limit)]
    mine = {prompt.uid: prompt for prompts in built for prompt in prompts}
    return [mine[uid] for uid in kept if uid in mine], kept


def statistics(hosts: Hosts, done: Statistics) -> Statistics:
    """What the samplers of all hosts have done."""
    total = Statistics()
    for part in hosts.gather(dataclasses.asdict(done), "the sampler's statistics"):
        total.add(Statistics(**part))
    return total


def _outcome(row: dict[str, Any]) -> Outcome:
    values: dict[str, Any] = row | {"correct": tuple(row["correct"])}
    return Outcome(**values)
