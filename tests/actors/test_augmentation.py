"""The walk over the hard questions: which of them get prompts, whom the teacher answers, and whose slots are free.

The job is a real one, made by `setup`; only the teacher is a script, since nobody can order what a model knows.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import operator
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest

from tests import runs
from tests.test_setup import Names
from tests.zppo.builders import make_rollout
from zppo_jax import setup
from zppo_jax.actors.local_teacher import Summaries
from zppo_jax.augmentation import Augmented, augment
from zppo_jax.compilation import Compiler
from zppo_jax.data.pipeline import Item
from zppo_jax.parallel import Hosts
from zppo_jax.run.timers import PhaseTimers
from zppo_jax.types import Group
from zppo_jax.zppo import Candidate, select

NUM_HARD, LIMIT = 16, 8


@dataclasses.dataclass
class Script:
    """A teacher that is right on the questions in `knows`, and shows each response as `shown` writes it."""

    knows: set[str]
    shown: Callable[[Candidate], str] = operator.attrgetter("text")
    asked: list[str] = dataclasses.field(default_factory=list)

    def answer(self, items, *, seed, step):
        del seed, step
        self.asked += [item.prompt.question.id for item in items]
        return [
            Group(item.prompt, item.features, (make_rollout("teacher", item.prompt.question.id in self.knows, "7"),))
            for item in items
        ]

    def compress(self, candidates, *, seed, step):
        del seed, step
        refused = collections.Counter({("student", "no_answer"): 1}) if candidates else collections.Counter()
        return Summaries({one: self.shown(one) for one in candidates}, len(set(candidates)), refused)


@pytest.fixture(scope="module")
def made(start):
    """A job for each method, 16 questions, and a cap of 8 prompts."""
    jobs: dict[str, setup.Job] = {}

    def job_of(method: str, **changes: Any) -> setup.Job:
        name = json.dumps([method, changes])
        if name not in jobs:
            sizes = {"data__num_questions": NUM_HARD, "rollout__questions_per_step": NUM_HARD}
            config = runs.config(start, method, **sizes, **changes)
            jobs[name], _ = setup.build(config, start, start, cast(Compiler, Names()))
        return jobs[name]

    yield job_of
    for job in jobs.values():
        job.close()


@pytest.fixture(scope="module")
def groups(made) -> list[Group]:
    """Sixteen hard questions of eight rollouts: the first eight are all wrong, the others once or twice right."""
    items: list[Item] = list(next(made("zppo").stream).new)
    right = [max(0, index - 7) % 3 for index in range(NUM_HARD)]
    return [
        Group(item.prompt, item.features, tuple(make_rollout(f"w{n}", n < count, "5") for n in range(8)))
        for item, count in zip(items, right, strict=True)
    ]


def walked(job: setup.Job, groups: list[Group], teacher: Script, hosts: Hosts | None = None) -> Augmented:
    changed = dataclasses.replace(job, teacher=cast(Any, teacher), hosts=hosts or Hosts())
    hard = select.hard([group.outcome() for group in groups])
    return augment(changed, groups, hard, 1, PhaseTimers())


def ranked_ids(job: setup.Job, groups: list[Group]) -> list[str]:
    outcomes = select.hard([group.outcome() for group in groups])
    return [outcome.question_id for outcome in select.ranked(outcomes, job.config.seed, 1)]


@pytest.mark.parametrize("scope", ["capped", "all_hard"])
def test_bcq_alone_takes_the_hardest_that_the_teacher_can_answer(made, groups, scope):
    """It is right on the eight less hard questions only: those fill the cap (App. C), and not none of them."""
    job = made("grpo_replay_bcq", teacher__scope=scope)
    ranks = ranked_ids(job, groups)
    teacher = Script(set(ranks[LIMIT:]))
    added = walked(job, groups, teacher)
    assert [uid.split("/")[-1] for uid in added.uids] == ["bcq"] * LIMIT
    assert [item.prompt.question.id for item in added.items] == ranks[LIMIT:]
    assert sorted(teacher.asked) == sorted(ranks), "each once"


def test_the_walk_ends_when_the_cap_is_full(made, groups):
    job = made("grpo_replay_bcq", teacher__scope="capped")
    ranks = ranked_ids(job, groups)
    teacher = Script(set(ranks))
    added = walked(job, groups, teacher)
    assert [item.prompt.question.id for item in added.items] == ranks[:LIMIT]
    assert set(teacher.asked) == set(ranks[:LIMIT]), "the others are not asked"


def test_the_walk_ends_with_the_ranks(made, groups):
    job = made("grpo_replay_bcq", teacher__scope="capped")
    ranks = ranked_ids(job, groups)
    added = walked(job, groups, Script({ranks[0], ranks[-1]}))
    assert [item.prompt.question.id for item in added.items] == [ranks[0], ranks[-1]]
    assert walked(job, [], Script(set())).uids == []


@pytest.mark.parametrize("scope", ["capped", "all_hard"])
def test_with_ncq_it_is_algorithm_1(made, groups, scope):
    """Pre-cap, BCQ before NCQ, post-cap; with `capped` the teacher answers the pre-cap's questions alone."""
    job = made("zppo", teacher__scope=scope)
    ranks = ranked_ids(job, groups)
    knows = set(ranks[1::2])
    teacher = Script(knows)
    added = walked(job, groups, teacher)
    per_question = [[f"1/{one}/{kind}" for kind in ("bcq", "ncq") if kind == "ncq" or one in knows] for one in ranks]
    assert added.uids == [uid for uids in per_question[:LIMIT] for uid in uids][:LIMIT]
    assert len(teacher.asked) == (LIMIT if scope == "capped" else NUM_HARD)


def test_the_slot_of_a_prompt_that_no_bucket_holds_goes_to_the_next(made, groups):
    """Every NCQ prompt is too long: they lose their slots, are counted, and BCQ prompts of later ranks take them."""
    job = made("zppo", teacher__scope="capped")
    ranks = ranked_ids(job, groups)
    teacher = Script(set(ranks), shown=lambda one: "word " * (30 if one.text.startswith("w") else 1))
    added = walked(job, groups, teacher)
    assert added.uids == [f"1/{one}/bcq" for one in ranks[:LIMIT]]
    assert added.counts["zppo/too_long"] == LIMIT - 1, "the last one's NCQ prompt would have come after the cap"
    huge = Script(set(ranks), shown=lambda one: "word " * 500)
    nothing = walked(job, groups, huge)
    assert nothing.uids == [] and nothing.items == [] and nothing.counts["zppo/too_long"] == 2 * NUM_HARD


def test_refused_summaries_are_counted_by_author_and_reason(made, groups):
    counts = walked(made("zppo"), groups, Script(set())).counts
    assert counts["compress/refused"] == counts["compress/refused/student/no_answer"] == 1
    assert counts["compress/summaries"] == 8, "equal responses of two questions need one summary: w0 to w7"
    assert counts["compress/refused/teacher/no_answer"] == 0


def test_a_group_with_an_undecided_rollout_is_not_reformulated(made, groups):
    job = made("zppo")
    first, *others = groups
    unknown = dataclasses.replace(first.rollouts[0], decided=False, status="error")
    group = dataclasses.replace(first, rollouts=(unknown, *first.rollouts[1:]))
    added = walked(job, [group, *others], Script(set(ranked_ids(job, groups))))
    assert not any(f"/{first.prompt.question.id}/" in uid for uid in added.uids)


class Pair(Hosts):
    """One of two hosts in one process, which meet where real ones do."""

    def meet(self, barrier: threading.Barrier, table: list[Any]) -> Pair:
        self.barrier, self.table = barrier, table
        return self

    def gather(self, value: Any, what: str) -> list[Any]:
        del what
        self.table[self.index] = json.loads(json.dumps(value))
        self.barrier.wait(30)
        found = list(self.table)
        self.barrier.wait(30)
        return found


@pytest.mark.parametrize("method", ["grpo_replay_bcq", "zppo"])
def test_two_hosts_decide_as_one(made, groups, method):
    job = made(method, teacher__scope="capped")
    ranks = ranked_ids(job, groups)
    knows = set(ranks[3::2])
    alone = walked(job, groups, Script(knows))
    barrier, table, found = threading.Barrier(2), [None, None], {}
    outcomes = [group.outcome(index % 2) for index, group in enumerate(groups)]

    def work(index: int) -> None:
        hosts = Pair(index, 2).meet(barrier, table)
        changed = dataclasses.replace(job, teacher=cast(Any, Script(knows)), hosts=hosts)
        found[index] = augment(changed, groups[index::2], select.hard(outcomes), 1, PhaseTimers())

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found[0].uids == found[1].uids == alone.uids
    assert {item.prompt.uid for part in found.values() for item in part.items} == set(alone.uids)
    assert found[0].counts["zppo/too_long"] == 0
