"""The student answers the prompts of a step, on each host its share of them.

What the others need to know of its groups is gathered at once (cohort.py), so that every host takes the same decisions.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from zppo_jax.actors.actor import Actor
from zppo_jax.actors.cohort import gather_cohort
from zppo_jax.data.pipeline import EncodedPrompt
from zppo_jax.keys import RandomStream
from zppo_jax.parallel import HostCopy, Hosts
from zppo_jax.rollout.counters import Counters
from zppo_jax.rollout.filters import Sampling
from zppo_jax.types import Cohort


@dataclasses.dataclass(frozen=True)
class Student:
    """Samples `group_size` rollouts a prompt; over several hosts from a copy of the parameters on its own devices."""

    actor: Actor
    group_size: int
    sampling: Sampling
    hosts: Hosts
    host_copy: HostCopy

    def sampling_params(self, params: dict[str, Any]) -> dict[str, Any]:
        """The parameters that this host samples with: those given, or a copy on its own devices."""
        return self.host_copy.get(params)

    @contextlib.contextmanager
    def rollouts(self, params: dict[str, Any]) -> Iterator[Rollouts]:
        """Rollouts with these parameters; at the end of the block the memory that only sampling needs is given back."""
        self.actor.engine.kept.counters.take()  # drops what an evaluation counted
        rollouts = Rollouts(self, self.sampling_params(params))
        try:
            yield rollouts
        finally:
            self.release()

    def release(self) -> None:
        """Gives back the memory that only sampling needs."""
        self.actor.engine.kept.release()
        self.host_copy.release()


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """The student with the parameters of one step."""

    student: Student
    params: dict[str, Any]

    def cohort(
        self, items: Sequence[EncodedPrompt], stream: RandomStream, order: Sequence[str] | None = None
    ) -> Cohort:
        """Groups of this host's prompts, with the outcomes of all hosts' groups, in the `order` of their uids."""
        student = self.student
        groups = student.actor.answer(self.params, items, student.group_size, student.sampling, stream)
        return gather_cohort(groups, student.hosts, f"the {stream.purpose} rollouts", order)

    def counts(self) -> Counters:
        """What the samplers of all hosts have done since this was last asked."""
        total = Counters()
        done = dataclasses.asdict(self.student.actor.engine.kept.counters.take())
        for part in self.student.hosts.gather(done, "the sampler's statistics"):
            total.add(Counters(**part))
        return total
