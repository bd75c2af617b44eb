"""The student, which answers the prompts of a step, each host its share.

The outcomes of its groups are gathered at once (cohort.py), so that every host makes the same decisions.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from zppo_jax.actors.actor import Actor, Scored
from zppo_jax.actors.cohort import gather_cohort
from zppo_jax.data.processing import EncodedPrompt
from zppo_jax.keys import RandomStream
from zppo_jax.parallel import HostCopy, Hosts
from zppo_jax.rollout.counters import Counters
from zppo_jax.rollout.filters import Sampling
from zppo_jax.types import Cohort


@dataclasses.dataclass(frozen=True)
class Student:
    """Samples `group_size` rollouts per prompt; with several hosts, each from a copy of the parameters on its
    devices."""

    actor: Actor
    group_size: int
    sampling: Sampling
    hosts: Hosts
    host_copy: HostCopy

    def sampling_params(self, params: dict[str, Any]) -> dict[str, Any]:
        """The parameters that this host samples with: the given ones, or a copy on its own devices."""
        return self.host_copy.get(params)

    @contextlib.contextmanager
    def rollouts(self, params: dict[str, Any]) -> Iterator[Rollouts]:
        """Rollouts with these parameters; the end of the block frees the memory that only sampling needs."""
        self.actor.engine.kept.counters.take()  # drops the evaluation's counters
        rollouts = Rollouts(self, self.sampling_params(params))
        try:
            yield rollouts
        finally:
            self.release()

    def release(self) -> None:
        """Frees the memory that only sampling needs."""
        self.actor.engine.kept.release()
        self.host_copy.release()


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """The student with the parameters of one step."""

    student: Student
    params: dict[str, Any]

    def cohort(
        self,
        items: Sequence[EncodedPrompt],
        stream: RandomStream,
        order: Sequence[str] | None = None,
        watch: Callable[[Scored], None] | None = None,
    ) -> Cohort:
        """Samples groups for this host's prompts, and gathers the outcomes of all groups in `order` of their uids.

        `watch` is called with rollouts as they are scored: see Actor.answer.
        """
        student = self.student
        groups = student.actor.answer(self.params, items, student.group_size, student.sampling, stream, watch)
        return gather_cohort(groups, student.hosts, f"the {stream.purpose} rollouts", order)

    def counts(self) -> Counters:
        """The counters of the samplers of all hosts since the last call."""
        total = Counters()
        done = dataclasses.asdict(self.student.actor.engine.kept.counters.take())
        for part in self.student.hosts.gather(done, "the sampler's statistics"):
            total.add(Counters(**part))
        return total
