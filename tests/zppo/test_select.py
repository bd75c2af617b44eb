"""Hard questions, and the two caps of Algorithm 1."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.zppo.builders import outcome_with
from zppo_jax.keys import RandomStream
from zppo_jax.types import Outcome
from zppo_jax.zppo import ReplayBuffer, select
from zppo_jax.zppo.select import PromptRef

num_correct = st.lists(st.integers(0, 8), max_size=20)


def ties(seed: int, step: int) -> RandomStream:
    """The stream that breaks ties, as the training step names it."""
    return RandomStream(seed, step, "pre_cap_ties")


def test_hard_is_strictly_below_the_threshold():
    groups = [outcome_with(f"q{count}", count) for count in range(9)]
    assert [group.question_id for group in select.hard(groups)] == ["q0", "q1", "q2", "q3"]
    assert [group.question_id for group in select.hard(groups, threshold=0.25)] == ["q0", "q1"]


def test_only_plain_and_replayed_groups_count():
    groups = [outcome_with("a", 1), outcome_with("b", 2, kind="replay"), outcome_with("a", 8, kind="bcq")]
    groups += [outcome_with("b", 0, kind="ncq"), outcome_with("c", 8)]
    assert select.plain_accuracies(groups) == {"a": 0.125, "b": 0.25, "c": 1.0}
    assert [group.uid for group in select.hard(groups)] == ["0/a/plain", "0/b/replay"]
    with pytest.raises(ValueError, match="'a' has two plain groups"):
        select.plain_accuracies([*groups, outcome_with("a", 1, kind="replay")])


@given(num_correct, st.integers(0, 2**31), st.integers(0, 10**6), st.randoms())
def test_ranks_begin_with_the_hardest_whatever_the_order(counts, seed, step, random):
    groups = [outcome_with(f"q{index}", count) for index, count in enumerate(counts)]
    kept = select.ranked(groups, ties(seed, step))
    accuracies = [group.accuracy for group in kept]
    assert accuracies == sorted(group.accuracy for group in groups)
    shuffled = random.sample(groups, len(groups))
    assert [g.uid for g in select.ranked(shuffled, ties(seed, step))] == [g.uid for g in kept]


def test_ties_are_broken_without_favour():
    """Each of 10 tied questions is kept equally often over steps, and over seeds."""
    groups = [outcome_with(f"q{index}", 0) for index in range(10)]
    for calls in ([(1, step) for step in range(600)], [(seed, 1) for seed in range(600)]):
        kept = [group.question_id for call in calls for group in select.ranked(groups, ties(*call))[:3]]
        counts = [kept.count(f"q{index}") for index in range(10)]
        assert sum((count - 180) ** 2 / 180 for count in counts) < 27.9  # 0.1 % point, 9 degrees of freedom


def test_hashes_do_not_depend_on_the_process():
    code = "from zppo_jax.keys import RandomStream; print(RandomStream(1, 2, 'pre_cap_ties').hash('q'))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={
        "PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path), "JAX_PLATFORMS": "nonexistent"})  # fmt: skip
    assert int(output.stdout) == ties(1, 2).hash("q")
    assert ties(1, 23).hash("4") != ties(12, 3).hash("4")
    assert ties(1, 2).hash("q") != RandomStream(1, 2, "replay_draw").hash("q")


def ref(question_id: str, kind: str, fits: bool = True) -> PromptRef:
    return PromptRef(f"0/{question_id}/{kind}", kind, fits)


def both(question_id: str) -> list[PromptRef]:
    return [ref(question_id, "bcq"), ref(question_id, "ncq")]


def kept(prompts_per_question: Iterable[Sequence[PromptRef]], limit: int) -> list[str]:
    """The uids of the kept prompts; all of them fit."""
    prompts, num_too_long = select.post_cap(prompts_per_question, limit)
    assert num_too_long == 0
    return [prompt.uid for prompt in prompts]


def test_post_cap_keeps_bcq_when_one_slot_is_left():
    per_question = [both("a"), [ref("b", "ncq")], both("c"), both("d")]
    expected = ["0/a/bcq", "0/a/ncq", "0/b/ncq", "0/c/bcq"]
    assert kept(per_question, 4) == expected  # c's NCQ is dropped, and d gets nothing
    assert kept([prompts[::-1] for prompts in per_question], 4) == expected
    assert kept(per_question, 0) == []
    assert len(kept(per_question, 7)) == len(kept(per_question, 99)) == 7


@given(st.lists(st.sampled_from(["none", "ncq", "both"]), max_size=12), st.integers(0, 30))
def test_post_cap_follows_the_walk(shapes: list[str], limit: int):
    of = {"none": (), "ncq": ("ncq",), "both": ("bcq", "ncq")}
    per_question = [[ref(f"q{i}", kind) for kind in of[shape]] for i, shape in enumerate(shapes)]
    walk = []
    for prompts in per_question:
        for prompt in prompts:
            if len(walk) < limit:
                walk.append(prompt)
    assert select.post_cap(per_question, limit) == (walk, 0)


@pytest.mark.parametrize(("limit", "taken"), [(0, ""), (1, "a"), (2, "a"), (3, "ab"), (4, "abc"), (99, "abc")])
def test_post_cap_takes_no_more_questions_than_fill_the_cap(limit, taken):
    """The teacher answers a question when it is read: one after a full cap must cost nothing."""
    asked: list[str] = []

    def questions() -> Iterator[list[PromptRef]]:
        for name, fits in (("a", True), ("b", False), ("c", True)):
            asked.append(name)
            yield [ref(name, "bcq", fits), ref(name, "ncq")]

    select.post_cap(questions(), limit)
    assert "".join(asked) == taken


def test_shares_are_floored_as_written():
    assert select.augmentation_limit(0.25, 384) == select.replay_count(0.25, 384) == 96
    assert select.replay_count(0.25, 7) == 1
    assert select.replay_count(0.29, 100) == 29  # in binary the product is below 29
    assert select.replay_count(0.1, 30) == 3
    assert select.augmentation_limit(0, 8) == select.replay_count(0.0, 8) == 0
    assert select.replay_count(1.5, 3) == 4


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"zppo.augmentation_fraction = 0.25 of .*_per_step = 3 .*0.333334"):
        select.augmentation_limit(0.25, 3)
    with pytest.raises(ValueError, match=r"replay.fraction = 0.01"):
        select.replay_count(0.01, 8)
    for fraction in (-0.25, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"replay\.fraction"):
            select.replay_count(fraction, 8)
    with pytest.raises(ValueError, match="questions_per_step = 0"):
        select.replay_count(0.25, 0)


def test_negative_caps_are_refused():
    with pytest.raises(ValueError, match="-1"):
        select.post_cap([], -1)


def undecided(outcome: Outcome) -> Outcome:
    return dataclasses.replace(outcome, num_undecided=1)


def test_an_undecided_group_is_neither_hard_nor_does_it_change_the_buffer():
    """A dead worker is not a wrong answer: the question is not admitted, and one in the buffer does not change."""
    buffer = ReplayBuffer(10)
    buffer.refresh({"in": 0.0}, 1)
    outcomes = [undecided(outcome_with("new", 0)), undecided(outcome_with("in", 8)), outcome_with("other", 0)]
    assert [outcome.question_id for outcome in select.hard(outcomes)] == ["other"]
    assert select.plain_accuracies(outcomes) == {"other": 0.0}
    refreshed = buffer.refresh(select.plain_accuracies(outcomes), 2)
    assert refreshed.admitted == ("other",) and not refreshed.graduated and "in" in buffer


def listed(question_id: str, *fits: bool) -> list[PromptRef]:
    return [PromptRef(f"{question_id}/{kind}", kind, ok) for kind, ok in zip(("bcq", "ncq"), fits, strict=False)]


def test_the_slot_of_a_prompt_that_does_not_fit_goes_to_the_next():
    walk = [listed("a", True, False), listed("b", False, True), listed("c", True, True)]
    chosen, passed_over = select.post_cap(walk, 3)
    assert [one.uid for one in chosen] == ["a/bcq", "b/ncq", "c/bcq"] and passed_over == 2
    chosen, passed_over = select.post_cap(walk, 1)
    assert [one.uid for one in chosen] == ["a/bcq"] and passed_over == 0, "what comes after the cap has lost nothing"
    chosen, passed_over = select.post_cap(walk, 9)
    assert len(chosen) == 4 and passed_over == 2
    assert select.post_cap([listed("a", False, False)], 2) == ([], 2)
    assert select.post_cap([], 2) == ([], 0)
