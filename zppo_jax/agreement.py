"""What the hosts of a run agree on in a step: whose rollouts were right, which prompts fit the cap, what was done.

Each host gives what it knows of its own groups and learns the rest; from there all take the same decisions by the same
pure functions. With one host everything is its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
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


def listed(
    hosts: Hosts, block: Sequence[Outcome], built: Sequence[Sequence[tuple[Prompt, bool]]]
) -> list[list[select.Listed]]:
    """The prompts of each question of a block, whichever host has built them, in the order of the block.

    `block` are questions of all hosts, `built` the prompts of this host's among them and whether each fits.
    """
    rows = [[[prompt.uid, prompt.kind, fits] for prompt, fits in prompts] for prompts in built]
    parts = [iter(part) for part in hosts.gather(rows, "the reformulated prompts")]
    return [[select.Listed(*row) for row in next(parts[outcome.host], ())] for outcome in block]


def summed(hosts: Hosts, counts: Mapping[str, int]) -> dict[str, int]:
    """The counts of all hosts together, by name; all have the same names."""
    parts = hosts.gather(dict(counts), "the counts of the reformulation")
    return {name: sum(part[name] for part in parts) for name in counts}


def statistics(hosts: Hosts, done: Statistics) -> Statistics:
    """What the samplers of all hosts have done."""
    total = Statistics()
    for part in hosts.gather(dataclasses.asdict(done), "the sampler's statistics"):
        total.add(Statistics(**part))
    return total


def _outcome(row: dict[str, Any]) -> Outcome:
    values: dict[str, Any] = row | {name: tuple(row[name]) for name in ("correct", "statuses")}
    return Outcome(**values)
