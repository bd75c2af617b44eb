"""A cohort over all hosts: each group is on one host, its outcome on all."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from zppo_jax.parallel import Hosts
from zppo_jax.types import Cohort, Group, Outcome


def gather_cohort(groups: Sequence[Group], hosts: Hosts, what: str, order: Sequence[str] | None = None) -> Cohort:
    """Returns this host's groups with the outcomes of all hosts' groups. Collective: every host must call it.

    `order` gives the uids of all groups in the order of the outcomes. None means that the prompts were dealt to the
    hosts one by one; the order is then the one that a single host would have.
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
