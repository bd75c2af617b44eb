"""A cohort of all hosts: a group is one host's, its outcome is everybody's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from zppo_jax.parallel import Hosts
from zppo_jax.types import Cohort, Group, Outcome


def gather_cohort(groups: Sequence[Group], hosts: Hosts, what: str, order: Sequence[str] | None = None) -> Cohort:
    """This host's groups with the outcomes of all hosts' groups; every host calls it at the same time.

    `order` are the uids of all groups in the order of the outcomes. Without it the prompts were dealt to the hosts one
    by one, and the order is that in which one host would have them.
    """
    rows = [dataclasses.asdict(group.outcome(hosts.index)) for group in groups]
    outcomes = [_outcome(row) for row in hosts.gather_dealt(rows, what)]
    if order is not None:
        place = {uid: number for number, uid in enumerate(order)}
        outcomes.sort(key=lambda outcome: place[outcome.uid])
    return Cohort(tuple(groups), tuple(outcomes))


def _outcome(row: dict[str, Any]) -> Outcome:
    values: dict[str, Any] = row | {name: tuple(row[name]) for name in ("correct", "statuses")}
    return Outcome(**values)
