"""The outcomes of all hosts come in one order, whichever host has the groups."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from tests.zppo.builders import group_with
from zppo_jax.actors.cohort import gather_cohort
from zppo_jax.parallel import Hosts

NAMES = ("a", "b", "c", "d", "e")
GROUPS = {name: group_with(name, index) for index, name in enumerate(NAMES)}
UIDS = [GROUPS[name].prompt.uid for name in NAMES]


class First(Hosts):
    """The first of two hosts; the other one has the groups of `others`."""

    def __init__(self, others: str) -> None:
        super().__init__(0, 2)
        self.others = others

    def gather(self, value: Any, what: str) -> list[Any]:
        theirs = [dataclasses.asdict(GROUPS[name].outcome(1)) for name in self.others]
        return json.loads(json.dumps([value, theirs]))


@pytest.mark.parametrize(("mine", "theirs"), [("ace", "bd"), ("de", "abc"), ("", "abcde"), ("abcde", "")])
def test_the_order_is_the_given_one_wherever_a_group_is(mine, theirs):
    found = gather_cohort([GROUPS[name] for name in mine], First(theirs), "the rollouts", UIDS)
    assert [outcome.uid for outcome in found.outcomes] == UIDS
    assert [outcome.host for outcome in found.outcomes] == [int(name in theirs) for name in NAMES]
    assert found.groups == tuple(GROUPS[name] for name in mine)


def test_without_an_order_the_groups_were_dealt_one_by_one():
    found = gather_cohort([GROUPS[name] for name in "ace"], First("bd"), "the rollouts")
    assert [outcome.uid for outcome in found.outcomes] == UIDS
    assert found.outcomes[0] == GROUPS["a"].outcome(0) and found.outcomes[1] == GROUPS["b"].outcome(1)
