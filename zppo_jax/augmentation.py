"""The reformulated prompts of a step (steps 2 to 5 of Algorithm 1, arXiv:2606.18216): a walk down the ranks.

The cap is on the hardest questions "that admit at least one" prompt (App. C). With NCQ every hard question admits one,
and the walk ends with its first block, which is the pre-cap of Algorithm 1. Where every prompt needs a correct response
of the teacher, a question shows only when the teacher has answered whether it admits one: the walk asks block by block,
hardest first, until the cap is full or no hard question is left. The slot of a prompt that no bucket holds goes to
the next prompt.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from zppo_jax import agreement
from zppo_jax.data.pipeline import Item
from zppo_jax.run.timers import PhaseTimers
from zppo_jax.setup import Job
from zppo_jax.types import Group, Outcome, Prompt, Rollout
from zppo_jax.zppo import build_prompts, choose_candidates, select, summaries


class Augmented(NamedTuple):
    """The prompts within the cap: this host's, ready to be sampled, and the uids of all hosts', in order.

    `counts` are metrics of all hosts: prompts that were passed over because no bucket holds them, summaries that were
    asked for, and those that could not stand for their response, by author and reason.
    """

    items: list[Item]
    uids: list[str]
    counts: dict[str, int]


def augment(job: Job, groups: Sequence[Group], hard: Sequence[Outcome], step: int, timers: PhaseTimers) -> Augmented:
    """The reformulated prompts of a step, from the hard groups of all hosts; `groups` are this host's plain ones."""
    if job.teacher is None or job.augmentation_limit == 0:
        return Augmented([], [], {"zppo/too_long": 0})
    walk = _Walk(job, step, {group.prompt.uid: group for group in groups})
    ranks, limit = select.ranked(hard, job.config.seed, step), job.augmentation_limit
    listed: list[list[select.Listed]] = []
    kept: list[select.Listed] = []
    num_too_long = 0
    for start in range(0, len(ranks), limit):
        block = ranks[start : start + limit]
        with timers("teacher"):
            walk.ask(hard if job.config.teacher.scope == "all_hard" else block)
            built = walk.build(block)
        with timers("agreement"):
            listed += agreement.listed(job.hosts, block, built)
        kept, num_too_long = select.fitting(listed, limit)
        if len(kept) == limit:
            break
    with timers("reformulation"):
        uids = [prompt.uid for prompt in kept]
        items = job.process.items_of([walk.prompts[uid] for uid in uids if uid in walk.prompts])
    with timers("agreement"):
        counts = agreement.summed(job.hosts, walk.counts())
    return Augmented(items, uids, {"zppo/too_long": num_too_long} | counts)


@dataclasses.dataclass
class _Walk:
    """What this host knows so far: the teacher's rollouts by plain uid, the prompts by uid."""

    job: Job
    step: int
    groups: dict[str, Group]
    answers: dict[str, tuple[Rollout, ...]] = dataclasses.field(default_factory=dict)
    prompts: dict[str, Prompt] = dataclasses.field(default_factory=dict)
    num_summaries: int = 0
    refused: collections.Counter[tuple[str, str]] = dataclasses.field(default_factory=collections.Counter)

    def _here(self, outcomes: Sequence[Outcome]) -> list[Group]:
        return [self.groups[outcome.uid] for outcome in outcomes if outcome.uid in self.groups]

    def ask(self, outcomes: Sequence[Outcome]) -> None:
        """Fresh teacher rollouts on those of this host's questions that it has not answered in this step."""
        if not self.job.method.needs_teacher:
            return
        assert self.job.teacher is not None
        asked = [group for group in self._here(outcomes) if group.prompt.uid not in self.answers]
        items = [Item(group.prompt, group.features) for group in asked]
        answered = self.job.teacher.answer(items, seed=self.job.config.seed, step=self.step) if items else []
        self.answers |= {group.prompt.uid: group.rollouts for group in answered}

    def build(self, block: Sequence[Outcome]) -> list[list[tuple[Prompt, bool]]]:
        """The prompts of each question of the block that is this host's, and whether some bucket holds them."""
        assert self.job.teacher is not None
        seed, names = self.job.config.seed, self.job.method.reformulations
        choices = [
            choose_candidates(group, self.answers.get(group.prompt.uid, ()), names, seed, self.step)
            for group in self._here(block)
        ]
        needed = [candidate for choice in choices for candidate in choice.needed]
        shown = self.job.teacher.compress(needed, seed=seed, step=self.step)
        self.num_summaries += shown.num_asked
        self.refused.update(shown.refused)
        built = [build_prompts(choice, shown.texts.__getitem__, self.job.template) for choice in choices]
        self.prompts |= {prompt.uid: prompt for prompts in built for prompt in prompts}
        return [[(prompt, self._fits(prompt)) for prompt in prompts] for prompts in built]

    def counts(self) -> dict[str, int]:
        """Metrics of the summaries, the same names in every step."""
        reasons = {
            f"compress/refused/{author}/{reason}": self.refused[author, reason]
            for author in summaries.AUTHORS
            for reason in summaries.REFUSALS
        }
        return {"compress/summaries": self.num_summaries, "compress/refused": self.refused.total()} | reasons

    def _fits(self, prompt: Prompt) -> bool:
        """By its text: the images are those of the plain prompt, which was sampled."""
        return self.job.student.engine.shapes.holds_tokens(self.job.process.num_tokens(prompt))
