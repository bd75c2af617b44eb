"""A run writes strict JSON at once, and cuts it back to the restored step as if nothing had come after."""

from __future__ import annotations

import dataclasses
import json
import resource
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

from tests.zppo.builders import group_with
from zppo_jax.data.pipeline import StepBatch
from zppo_jax.rollout.counters import Counters
from zppo_jax.run.metrics import SCHEMA, depends_on_clock
from zppo_jax.run.metrics_file import MetricsWriter
from zppo_jax.run.rows import read_rows
from zppo_jax.run.samples import SampleWriter, sample_row
from zppo_jax.run.step import Step
from zppo_jax.run.timers import PhaseTimers
from zppo_jax.types import Cohort, Features, Group, Prompt, Question, Rollout, Shown
from zppo_jax.update.learner import Updated
from zppo_jax.zppo import ReplayBuffer, select

PROMISED = {
    *("step", "rollout/accuracy", "rollout/hard_fraction", "rollout/tokens_per_second"),
    *("replay/size", "replay/graduated", "replay/evicted"),
    *("zppo/bcq_groups", "zppo/ncq_groups", "zppo/bcq_accuracy", "zppo/ncq_accuracy"),
    *("update/loss", "update/clip_fraction", "update/mismatch_kl", "update/grad_norm"),
    *("update/nonzero_group_fraction", "eval/accuracy", "eval/standard_error", "eval/wilson_low", "eval/wilson_high"),
    *("time/rollout", "time/teacher", "time/update", "time/step"),
}


def strict(line: str):
    """Parses JSON and refuses NaN and Infinity, which Python would let pass."""
    return json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def events(workdir: Path) -> set[tuple[str, int, float]]:
    """The (tag, step, value) of all TensorBoard events: records of length, checksum, bytes, checksum."""
    found = set()
    for file in workdir.glob("tensorboard/*"):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            found |= {(value.tag, event.step, value.simple_value) for value in event.summary.value}
            content = content[16 + length :]
    return found


def group(text: str = "think</think> \\boxed{3}", kind: str = "plain", parent: str | None = None) -> Group:
    empty = np.zeros((0,), np.int32)
    features = Features(empty, empty, np.zeros((3, 0), np.int32), 0, np.zeros((0, 1536), np.uint8), empty)
    rollouts = [
        Rollout(empty, empty.astype(np.float32), "stop", text, correct, "3", "correct") for correct in (True, False)
    ]
    question = Question("digits/7", "What?", (), "3", "math")
    return Group(Prompt("digits/7#plain", kind, question, "What? Answer.", parent), features, tuple(rollouts))


def test_every_row_has_the_promised_names_at_once(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    writer.write(0, {"eval/accuracy": 0.5})
    row = strict((tmp_path / "metrics.jsonl").read_text())
    assert row["step"] == 0 and row["eval/accuracy"] == 0.5 and row["update/loss"] is None
    assert {"step", *SCHEMA} >= PROMISED and {"step", *SCHEMA} == set(row)


def test_numbers_of_every_kind_are_written_and_those_that_are_none_are_null(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    values = {
        "update/loss": np.float32("nan"),
        "update/grad_norm": np.float64("inf"),
        "replay/size": np.int64(3),
        "zppo/bcq_groups": np.asarray(4),
        "eval/accuracy/read": np.float32(0.25),
        "time/step": -float("inf"),
    }
    writer.write(np.int64(1), values)  # pyright: ignore[reportArgumentType]
    row = strict((tmp_path / "metrics.jsonl").read_text())
    assert row["step"] == 1 and type(row["replay/size"]) is int
    assert (row["replay/size"], row["zppo/bcq_groups"], row["eval/accuracy/read"]) == (3, 4, 0.25)
    assert row["update/loss"] is None and row["update/grad_norm"] is None and row["time/step"] is None


def test_what_is_no_scalar_is_an_error(tmp_path):
    with pytest.raises(ValueError):
        MetricsWriter(tmp_path, tensorboard=False).write(1, {"update/loss": np.zeros(2)})


@pytest.mark.parametrize("half", [b"", b'{"step": 5, "upda', b'{"step": 3, "update/loss": 1.0}'])
def test_a_run_cut_back_and_continued_leaves_the_same_rows(tmp_path, half):
    for name, steps in (("whole", range(7)), ("killed", range(5))):
        (tmp_path / name).mkdir()
        writer = MetricsWriter(tmp_path / name)
        for step in steps:
            writer.write(step, {"update/loss": step / 7})
        writer.close()
        if name == "killed":  # in the middle of a line
            with (tmp_path / name / "metrics.jsonl").open("ab") as file:
                file.write(half)
    writer = MetricsWriter(tmp_path / "killed")
    writer.truncate(3)
    assert [row["step"] for row in read_rows(tmp_path / "killed" / "metrics.jsonl")] == [0, 1, 2, 3]
    assert {step for _, step, _ in events(tmp_path / "killed")} == {0, 1, 2, 3}
    for step in range(4, 7):
        writer.write(step, {"update/loss": step / 7})
    writer.close()
    whole, killed = (tmp_path / name for name in ("whole", "killed"))
    assert (whole / "metrics.jsonl").read_bytes() == (killed / "metrics.jsonl").read_bytes()
    assert events(whole) == events(killed) and len(events(whole)) == 7


def test_truncating_before_the_first_step_empties_everything(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.truncate(-1)  # no rows yet
    writer.write(0, {"eval/accuracy": 1})
    assert events(tmp_path) == {("eval/accuracy", 0, 1.0)}
    writer.truncate(-1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"" and events(tmp_path) == set()


def test_truncation_is_atomic(tmp_path, monkeypatch):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    for step in range(3):
        writer.write(step, {})
    before = (tmp_path / "metrics.jsonl").read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError):
        writer.truncate(1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_sample_tells_its_lineage(tmp_path):
    writer = SampleWriter(tmp_path, 1.0, 1)
    writer.write(4, group(kind="bcq", parent="digits/7#plain"), np.asarray([1.0, -1.0], np.float32))
    sample = strict((tmp_path / "samples.jsonl").read_text())
    assert sample["step"] == 4 and sample["question_id"] == "digits/7" and sample["kind"] == "bcq"
    assert sample["parent"] == "digits/7#plain" and sample["prompt"] == "What? Answer." and sample["gold"] == "3"
    assert sample["responses"] == ["think</think> \\boxed{3}"] * 2
    assert sample["rewards"] == [1.0, 0.0] and sample["advantages"] == [1.0, -1.0]


def test_a_sample_tells_what_was_shown_and_how_each_response_ended(tmp_path):
    """Whole and as shown, with its author: the file alone shows whether candidates match their answers."""
    sampled = group(kind="bcq", parent="digits/7#plain")
    shown = (Shown("teacher", "long \\boxed{3}", "3", "\\boxed{3}"), Shown("student", "hm", None, "hm"))
    prompt = dataclasses.replace(sampled.prompt, opening="so", shown=shown)
    ids_T = np.zeros(5, np.int32)
    cut = dataclasses.replace(sampled.rollouts[1], token_ids_T=ids_T, finish_reason="length", answer=None)
    sampled = dataclasses.replace(sampled, prompt=prompt, rollouts=(sampled.rollouts[0], cut))
    SampleWriter(tmp_path, 1.0, 1).write(4, sampled, [1.0, -1.0])
    sample = strict((tmp_path / "samples.jsonl").read_text())
    assert sample["opening"] == "so" and [one["author"] for one in sample["shown"]] == ["teacher", "student"]
    assert sample["shown"][0] == {
        "author": "teacher",
        "response": "long \\boxed{3}",
        "answer": "3",
        "text": "\\boxed{3}",
    }
    assert sample["answers"] == ["3", None] and sample["finish_reasons"] == ["stop", "length"]
    assert sample["lengths"] == [0, 5] and sample["statuses"] == ["correct", "correct"]


@pytest.mark.parametrize("text", ["日本 ✓", "a\nb\r\u2028c\x00", "\ud800 alone"])
def test_odd_text_comes_back_as_it_was_on_one_line(tmp_path, text):
    SampleWriter(tmp_path, 1.0, 1).write(1, group(text), [0.0, 0.0])
    content = (tmp_path / "samples.jsonl").read_bytes()
    assert content.count(b"\n") == 1
    assert strict(content.decode())["responses"] == [text, text]


def write_steps(writer: SampleWriter, steps: range) -> None:
    for step in steps:
        for _ in range(3):
            writer.write(step, group("x" * 200), [0.5, -0.5])


def contents(workdir: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in workdir.iterdir()}


def test_samples_are_bounded_in_size_and_number(tmp_path):
    write_steps(SampleWriter(tmp_path, 0.002, 2), range(20))
    assert set(contents(tmp_path)) == {"samples.jsonl", "samples.1.jsonl", "samples.2.jsonl"}
    assert all(0 < len(content) <= 2000 for content in contents(tmp_path).values())
    newest = [row["step"] for row in read_rows(tmp_path / "samples.jsonl")]
    oldest = [row["step"] for row in read_rows(tmp_path / "samples.2.jsonl")]
    assert newest[-1] == 19 and oldest[-1] < newest[0]


def test_one_line_larger_than_the_cap_is_still_written(tmp_path):
    writer = SampleWriter(tmp_path, 1e-6, 0)
    for step in range(3):
        writer.write(step, group(), [0.0, 0.0])
    assert [row["step"] for row in read_rows(tmp_path / "samples.jsonl")] == [2]
    assert list(contents(tmp_path)) == ["samples.jsonl"]


@pytest.mark.parametrize("restored", range(-1, 6))
def test_samples_are_the_same_after_a_kill_whatever_was_rotated(tmp_path, restored):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for workdir, steps in ((whole, range(9)), (killed, range(6))):
        workdir.mkdir()
        write_steps(SampleWriter(workdir, 0.003, 9), steps)
    assert len(contents(killed)) > 2
    writer = SampleWriter(killed, 0.003, 9)
    writer.truncate(restored)
    assert all(row["step"] <= restored for file in writer.files() for row in read_rows(file))
    write_steps(writer, range(restored + 1, 9))
    assert contents(whole) == contents(killed)


def test_timers_add_up_and_start_anew():
    timers = PhaseTimers()
    for _ in range(2):
        with timers("rollout"):
            time.sleep(0.02)
    with pytest.raises(KeyError), timers("update"):
        raise KeyError
    seconds = timers.flush()
    assert seconds.keys() == {"time/rollout", "time/update", "time/unaccounted", "time/step"}
    assert 0.04 <= seconds["time/rollout"] <= seconds["time/step"] < 1
    assert sum(seconds.values()) == pytest.approx(2 * seconds["time/step"])
    assert timers.flush().keys() == {"time/unaccounted", "time/step"}


def test_names_that_depend_on_the_clock():
    clock = {name for name in SCHEMA if depends_on_clock(name)}
    assert clock == {"rollout/tokens_per_second"} | {name for name in SCHEMA if name.startswith("time/")}
    assert depends_on_clock("memory/peak")


def test_a_line_is_written_whole_or_not_at_all(tmp_path):
    """Only ten more bytes fit: they are removed again, and the row is written when there is space."""
    writer, limits = MetricsWriter(tmp_path, tensorboard=False), resource.getrlimit(resource.RLIMIT_FSIZE)
    writer.write(1, {})
    file = tmp_path / "metrics.jsonl"
    size = file.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: .*metrics.jsonl"):
            writer.write(2, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.stat().st_size == size
    writer.write(2, {})
    assert [row["step"] for row in read_rows(file)] == [1, 2]


def cohort(groups: Sequence[Group]) -> Cohort:
    return Cohort(tuple(groups), tuple(group.outcome() for group in groups))


def step_of(
    plain: Sequence[Group], helped: Sequence[Group] = (), skipped: dict[int, list[int]] | None = None, **changes: Any
) -> Step:
    """A step with these groups, in which each rollout of group p has the weight p + 1."""
    first, second = cohort(plain), cohort(helped)
    weights_PG = np.stack([np.full(8, place + 1.0) for place in range(len(plain) + len(helped))])
    updated = Updated(weights_PG, {"loss": 0.5}, skipped or {})
    hard, counts = select.hard(first.outcomes), {"zppo/too_long": 2}
    step = Step(3, first, hard, second, counts, Counters(), first + second, updated, {}, StepBatch(3, (), ()))
    return dataclasses.replace(step, **changes)


def test_a_step_is_a_row_of_metrics():
    """For the new questions, all plain ones, and each kind of help, with the values of sampler, helper and update."""
    plain = [group_with("a", 2), group_with("b", 8), group_with("c", 6, kind="replay")]
    first, *others = plain[1].rollouts
    spoken = np.zeros(2, np.int32), np.asarray([-1.0, -3.0], np.float32)
    first = dataclasses.replace(first, token_ids_T=spoken[0], logprobs_T=spoken[1], finish_reason="length")
    plain[1] = dataclasses.replace(plain[1], rollouts=(first, *others))
    helped = [group_with("a", 4, kind="bcq"), group_with("a", 0, kind="ncq")]
    sampler = Counters(tokens=30, slot_steps=40, longest=7)
    row = step_of(plain, helped, sampler=sampler).metrics()
    assert row["rollout/accuracy"] == pytest.approx(2 / 3) and row["rollout/new_accuracy"] == 0.625
    assert row["rollout/hard_fraction"] == 1 / 3 and row["rollout/new_hard_fraction"] == 0.5
    assert (row["replay/groups"], row["zppo/bcq_groups"], row["zppo/ncq_groups"]) == (1, 1, 1)
    assert (row["replay/accuracy"], row["zppo/bcq_accuracy"], row["zppo/ncq_accuracy"]) == (0.75, 0.5, 0.0)
    assert (row["rollout/occupancy"], row["rollout/longest"], row["zppo/hard"]) == (0.75, 7, 1)
    assert (row["rollout/tokens"], row["rollout/entropy"], row["rollout/truncated_fraction"]) == (2, 2.0, 1 / 40)
    assert row["update/loss"] == 0.5 and row["zppo/too_long"] == 2 and "replay/size" not in row


def test_a_step_says_what_its_buffer_did():
    buffer = ReplayBuffer(1)
    refreshed = buffer.refresh({"a": 0.25, "b": 0.125}, 3)
    step = step_of([group_with("a", 2)], replay=buffer.counts(refreshed))
    buffer.refresh({"b": 1.0}, 4)  # later changes of the buffer do not change it
    row = step.metrics()
    names = ("size", "admitted", "graduated", "evicted", "graduated_total", "evicted_total")
    assert [row[f"replay/{name}"] for name in names] == [1, 2, 0, 1, 0, 1]
    assert row["replay/inside/0.125"] == row["replay/evicted_total/0.25"] == 1


def test_a_step_knows_what_each_group_counted_for_and_which_were_skipped():
    """For another host's group only the outcome is known: it counts, but its tokens are not here."""
    plain, helped = [group_with("a", 2), group_with("b", 8)], [group_with("a", 4, kind="bcq")]
    step = step_of(plain, helped, skipped={1: [2, 0]})
    assert {uid: set(weights) for uid, weights in step.advantages.items()} == {
        "0/a/plain": {1.0},
        "0/b/plain": {2.0},
        "0/a/bcq": {3.0},
    }
    assert step.groups == (*plain, *helped) and step.skipped == {1: [helped[0], plain[0]]}
    elsewhere = Cohort(step.learned.groups[1:], step.learned.outcomes)
    step = dataclasses.replace(step, plain=cohort(plain[1:]), learned=elsewhere)
    assert step.groups == (plain[1], helped[0]) and step.skipped == {1: [helped[0]]} and len(step.advantages) == 3


def test_what_the_teacher_says_is_recorded_beside_what_the_student_says(tmp_path):
    """If the update learns from the teacher, the student's groups have no advantages."""
    plain, taught = [group_with("a", 2)], dataclasses.replace(group_with("a", 8, kind="replay"), author="teacher")
    step = dataclasses.replace(step_of(plain), learned=cohort([taught]))
    assert step.groups == (plain[0], taught) and step.advantages.keys() == {"0/a/replay"}
    rows = [sample_row(3, group, step.advantages.get(group.prompt.uid)) for group in step.groups]
    assert [(row["author"], row["advantages"]) for row in rows] == [("student", None), ("teacher", [1.0] * 8)]


def test_undecided_rollouts_are_no_zeros_in_the_records():
    """Neither in a line of samples.jsonl nor in the shares of a step, which cover the decided groups."""
    right, unknown = (group_with(name, 0) for name in ("hard", "unknown"))
    rollouts = [dataclasses.replace(one, decided=False, status="error") for one in unknown.rollouts[:2]]
    unknown = dataclasses.replace(unknown, rollouts=(*rollouts, *unknown.rollouts[2:]))
    row = sample_row(1, unknown, np.zeros(8))
    assert row["rewards"] == [None, None, *[0.0] * 6] and row["statuses"][:2] == ["error", "error"]
    metrics = step_of([right, unknown]).metrics()
    assert metrics["rollout/hard_fraction"] == metrics["rollout/new_hard_fraction"] == 1.0
    assert metrics["rollout/accuracy"] == 0.0 and metrics["rollout/undecided"] == metrics["reward/error"] == 2
    nothing = step_of([unknown]).metrics()
    assert nothing["rollout/hard_fraction"] is None and nothing["rollout/accuracy"] is None
