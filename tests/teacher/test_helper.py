"""The walk over the hard questions: which of them get prompts, which the teacher answers, and which slots are free.

The parts are real ones, made by `setup`; only the teacher is a script, since a model's knowledge cannot be chosen.
"""

from __future__ import annotations

import dataclasses
import json
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import pytest

from tests import runs
from tests.test_setup import Names
from tests.zppo.builders import make_rollout
from zppo_jax import setup
from zppo_jax.compilation import Compiler
from zppo_jax.data.processing import EncodedPrompt
from zppo_jax.keys import RandomStream
from zppo_jax.parallel import Hosts
from zppo_jax.types import Cohort, Group, Missed, Outcome, Prompt
from zppo_jax.zppo import HELPS, SUMMARY, Turn, select
from zppo_jax.zppo.prompts import plain_text

NUM_HARD, LIMIT = 16, 8


def whole(response: str, count: int = 1) -> str:
    """A summary that repeats the response `count` times, with the response's answer."""
    return rf"<summary>{f'{response} ' * count}\boxed{{{7 if response == 'teacher' else 5}}}</summary>"


@dataclasses.dataclass
class Script:
    """A teacher that is right on the questions in `knows`, and writes `written(response)` about each response."""

    knows: set[str]
    written: Callable[[str], str | Missed] = whole
    asked: list[str] = dataclasses.field(default_factory=list)

    def answer(self, items, stream):
        assert stream == RandomStream(0, 1, "teacher")
        self.asked += [item.prompt.question.id for item in items]
        return {
            item.prompt.uid: (make_rollout("teacher", item.prompt.question.id in self.knows, "7"),) for item in items
        }

    def write(self, asks, stream):
        assert stream == RandomStream(0, 1, "write") and len(set(asks)) == len(asks)
        responses = [ask.partition("<response>\n")[2].partition("\n</response>")[0] for ask in asks]
        return [self.written(response) for response in responses]


@pytest.fixture(scope="module")
def made(start, tmp_path_factory):
    """The parts of each method, 16 questions, and a cap of 8 prompts; the teacher writes about responses."""
    found: dict[str, setup.Components] = {}

    def parts_of(method: str, **changes: Any) -> setup.Components:
        name = json.dumps([method, changes])
        if name not in found:
            sizes = {"data__num_questions": NUM_HARD, "rollout__questions_per_step": NUM_HARD}
            config = runs.config(start, method, teacher__compress__enabled=True, **sizes, **changes)
            folder = tmp_path_factory.mktemp("host")
            found[name], _ = setup.build(config, start, start, cast(Compiler, Names()), folder=folder)
        return found[name]

    yield parts_of
    for parts in found.values():
        parts.close()


@pytest.fixture(scope="module")
def groups(made) -> list[Group]:
    """Sixteen hard questions of eight rollouts: the first eight are all wrong, the others right once or twice."""
    items: list[EncodedPrompt] = list(next(made("zppo").stream).new)
    right = [max(0, index - 7) % 3 for index in range(NUM_HARD)]
    return [
        Group(item.prompt, item.features, tuple(make_rollout(f"w{n}", n < count, "5") for n in range(8)))
        for item, count in zip(items, right, strict=True)
    ]


class Walk(NamedTuple):
    """The uids of the prompts that the cap holds, this host's prompts among them, and the metrics."""

    uids: list[str]
    prompts: list[Prompt]
    counts: dict[str, int]


def walked(
    parts: setup.Components,
    groups: Sequence[Group],
    teacher: Script,
    hosts: Hosts | None = None,
    outcomes: Sequence[Outcome] = (),
) -> Walk:
    """Runs steps 2 to 4 of a training step, as `train_step` does."""
    helper = dataclasses.replace(parts.helper, teacher=teacher, hosts=hosts or Hosts())
    plain = Cohort(tuple(groups), tuple(outcomes or [group.outcome() for group in groups]))
    listing = helper.listing(plain, ranked(parts, plain.outcomes), parts.limit, parts.config.seed, 1)
    kept, num_too_long = select.post_cap(listing, parts.limit)
    counts = {"zppo/too_long": num_too_long, **listing.counts()}
    return Walk([ref.uid for ref in kept], listing.prompts_of(kept), counts)


def ranked(parts: setup.Components, outcomes: Sequence[Outcome]) -> list[Outcome]:
    return select.ranked(select.hard(outcomes), parts.random(1, "pre_cap_ties"))


def ranked_ids(parts: setup.Components, groups: list[Group]) -> list[str]:
    return [outcome.question_id for outcome in ranked(parts, [group.outcome() for group in groups])]


@pytest.mark.parametrize("scope", ["capped", "all_hard"])
def test_bcq_alone_takes_the_hardest_that_the_teacher_can_answer(made, groups, scope):
    """The teacher is right only on the eight less hard questions: those fill the cap (App. C)."""
    parts = made("grpo_replay_bcq", teacher__scope=scope)
    ranks = ranked_ids(parts, groups)
    teacher = Script(set(ranks[LIMIT:]))
    added = walked(parts, groups, teacher)
    assert [uid.split("/")[-1] for uid in added.uids] == ["bcq"] * LIMIT
    assert [prompt.question.id for prompt in added.prompts] == ranks[LIMIT:]
    assert sorted(teacher.asked) == sorted(ranks), "each once"


def test_a_question_that_the_teacher_missed_is_not_asked_again_in_the_step(made, groups):
    """With all_hard every block asks; a late answer to an earlier block's question would not be repeated by a
    recording."""
    parts = made("grpo_replay_bcq", teacher__scope="all_hard")
    ranks = ranked_ids(parts, groups)

    class Missing(Script):
        def answer(self, items, stream):
            found = super().answer(items, stream)
            return {uid: one for uid, one in found.items() if ranks[0] not in uid}

    teacher = Missing(set(ranks[LIMIT:]))
    walked(parts, groups, teacher)
    assert teacher.asked.count(ranks[0]) == 1


def test_the_walk_ends_when_the_cap_is_full(made, groups):
    parts = made("grpo_replay_bcq", teacher__scope="capped")
    ranks = ranked_ids(parts, groups)
    teacher = Script(set(ranks))
    added = walked(parts, groups, teacher)
    assert [prompt.question.id for prompt in added.prompts] == ranks[:LIMIT]
    assert set(teacher.asked) == set(ranks[:LIMIT]), "the others are not asked"


def test_the_walk_ends_with_the_ranks(made, groups):
    parts = made("grpo_replay_bcq", teacher__scope="capped")
    ranks = ranked_ids(parts, groups)
    added = walked(parts, groups, Script({ranks[0], ranks[-1]}))
    assert [prompt.question.id for prompt in added.prompts] == [ranks[0], ranks[-1]]
    assert walked(parts, [], Script(set())).uids == []


@pytest.mark.parametrize("scope", ["capped", "all_hard"])
def test_with_ncq_it_is_algorithm_1(made, groups, scope):
    """Pre-cap, BCQ before NCQ, post-cap; with `capped` the teacher answers the pre-cap's questions alone."""
    parts = made("zppo", teacher__scope=scope)
    ranks = ranked_ids(parts, groups)
    knows = set(ranks[1::2])
    teacher = Script(knows)
    added = walked(parts, groups, teacher)
    per_question = [[f"1/{one}/{kind}" for kind in ("bcq", "ncq") if kind == "ncq" or one in knows] for one in ranks]
    assert added.uids == [uid for uids in per_question[:LIMIT] for uid in uids][:LIMIT]
    assert len(teacher.asked) == (LIMIT if scope == "capped" else NUM_HARD)
    built = [uid for uids in per_question[:LIMIT] for uid in uids]
    for kind in ("bcq", "ncq"):
        assert added.counts[f"zppo/{kind}_listed"] == sum(uid.endswith(kind) for uid in built), "whatever the cap"


def test_the_slot_of_a_prompt_that_no_bucket_holds_goes_to_the_next(made, groups):
    """Every NCQ prompt is too long: each is counted, and its slot goes to a BCQ prompt of a later rank."""
    parts = made("zppo", teacher__scope="capped")
    ranks = ranked_ids(parts, groups)
    teacher = Script(set(ranks), written=lambda one: whole(one, 50 if one.startswith("w") else 1))
    added = walked(parts, groups, teacher)
    assert added.uids == [f"1/{one}/bcq" for one in ranks[:LIMIT]]
    assert added.counts["zppo/too_long"] == LIMIT - 1, "the last one's NCQ prompt would have come after the cap"
    huge = Script(set(ranks), written=lambda one: whole(one, 500))
    nothing = walked(parts, groups, huge)
    assert nothing.uids == [] and nothing.prompts == [] and nothing.counts["zppo/too_long"] == 2 * NUM_HARD


def test_refused_summaries_are_counted_by_author_and_reason(made, groups):
    teacher = Script(set(), lambda one: "<summary>lost</summary>" if one == "w3" else whole(one))
    counts = walked(made("zppo"), groups, teacher).counts
    assert counts["compress/refused"] == counts["compress/refused/student/no_answer"] == 1
    assert counts["compress/summaries"] == 8, "equal responses of two questions need one summary: w0 to w7"
    assert counts["compress/refused/teacher/no_answer"] == 0


def test_a_summary_without_fallback_leaves_out_the_prompts_that_need_it(made, groups, monkeypatch):
    """A kind of help whose text has no fallback: without the text there is no BCQ prompt."""
    written = dataclasses.replace(SUMMARY, name="hint", fallback=None)
    monkeypatch.setitem(HELPS, "bcq", dataclasses.replace(HELPS["bcq"], digest=written))
    parts = made("zppo", teacher__scope="capped")
    ranks = ranked_ids(parts, groups)
    silent = walked(
        parts, groups, Script(set(ranks), lambda one: Missed("timeout") if one == "teacher" else whole(one))
    )
    assert silent.uids == [f"1/{one}/ncq" for one in ranks[:LIMIT]], "NCQ prompts have the other digest"
    assert silent.counts["hint/refused/teacher/unwritten"] == 1 and silent.counts["compress/refused"] == 0
    lost = walked(parts, groups, Script(set(ranks), lambda one: "no tags" if one == "teacher" else whole(one)))
    assert lost.uids == silent.uids and lost.counts["hint/refused/teacher/no_summary"] == 1
    both = [f"1/{ranks[0]}/{kind}" for kind in ("bcq", "ncq")]
    assert walked(parts, groups, Script(set(ranks))).uids[:2] == both
    unwritten = dataclasses.replace(parts, helper=dataclasses.replace(parts.helper, writes=False))
    added = walked(unwritten, groups, Script(set(ranks)))
    assert added.uids[:2] == both and added.counts["hint/summaries"] > 0, "it is written where summaries are not"
    assert added.counts["compress/summaries"] == 0


def test_the_beginning_of_an_answer_takes_room_in_its_bucket(made, groups, monkeypatch):
    """A prompt that fits without its opening, but not with it, loses its slot."""

    def build(question_text, candidates, texts, template):
        return Turn(plain_text(question_text, template), texts[0])

    row = dataclasses.replace(HELPS["ncq"], choose=lambda wrong, right, rng: wrong[:1], build=build)
    monkeypatch.setitem(HELPS, "ncq", row)
    parts = made("grpo_replay_ncq")
    short, long = (walked(parts, groups, Script(set(), lambda one, n=n: whole(one, n))) for n in (1, 150))
    assert len(short.uids) == LIMIT and short.counts["zppo/too_long"] == 0
    assert all(re.fullmatch(r"w\d \\boxed\{5\}", prompt.opening) for prompt in short.prompts)
    assert long.uids == [] and long.counts["zppo/too_long"] == NUM_HARD


def test_a_method_without_help_asks_nobody(made, groups):
    teacher = Script(set())
    added = walked(made("grpo_replay"), groups, teacher)
    assert added.uids == added.prompts == teacher.asked == [] and not any(added.counts.values())


def test_a_group_with_an_undecided_rollout_is_not_reformulated(made, groups):
    parts = made("zppo")
    first, *others = groups
    unknown = dataclasses.replace(first.rollouts[0], decided=False, status="error")
    group = dataclasses.replace(first, rollouts=(unknown, *first.rollouts[1:]))
    added = walked(parts, [group, *others], Script(set(ranked_ids(parts, groups))))
    assert not any(f"/{first.prompt.question.id}/" in uid for uid in added.uids)


class Pair(Hosts):
    """One of two hosts in one process, which synchronise where real ones do."""

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
    parts = made(method, teacher__scope="capped")
    ranks = ranked_ids(parts, groups)
    knows = set(ranks[3::2])
    alone = walked(parts, groups, Script(knows))
    barrier, table, found = threading.Barrier(2), [None, None], {}
    outcomes = [group.outcome(index % 2) for index, group in enumerate(groups)]

    def work(index: int) -> None:
        hosts = Pair(index, 2).meet(barrier, table)
        found[index] = walked(parts, groups[index::2], Script(knows), hosts, outcomes)

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found[0].uids == found[1].uids == alone.uids
    assert {prompt.uid for part in found.values() for prompt in part.prompts} == set(alone.uids)
    assert sum(len(part.prompts) for part in found.values()) == len(alone.uids), "each is one host's"
    assert found[0].counts == found[1].counts
    assert found[0].counts["zppo/too_long"] == 0
