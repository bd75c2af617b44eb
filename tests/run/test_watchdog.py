"""Failures during a run: updates that are not finite, checkpoints that cannot be written."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import resource
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests import runs
from zppo_jax.actors.actor import Actor
from zppo_jax.errors import WorkdirError
from zppo_jax.run.console import RunConsole
from zppo_jax.run.saves import Saves
from zppo_jax.run.watchdog import NotFiniteError, SkippedUpdates


@contextlib.contextmanager
def poisoned(first_step: int) -> Iterator[None]:
    """Makes the sampler's log-probabilities of the student NaN from `first_step` on, and so every ratio."""
    answer = Actor.answer

    def answer_badly(self, params, items, num_samples, sampling, stream, watch=None):
        groups = answer(self, params, items, num_samples, sampling, stream, watch)
        if stream.step < first_step or stream.purpose not in ("student", "reformulated"):
            return groups
        return [
            dataclasses.replace(
                group,
                rollouts=tuple(
                    dataclasses.replace(one, logprobs_T=np.full_like(one.logprobs_T, np.nan)) for one in group.rollouts
                ),
            )
            for group in groups
        ]

    Actor.answer = answer_badly
    try:
        yield
    finally:
        Actor.answer = answer


def saved_params(workdir, step):
    return ocp.StandardCheckpointer().restore((workdir / "checkpoints" / str(step) / "state").absolute())["params"]


def test_updates_that_are_not_finite_are_skipped_counted_and_kept(start, tmp_path, capsys):
    """The model does not change; the groups of the skipped updates are on disk; the run goes on and may be continued.

    One update per step: of several, one whose groups are all right or all wrong would have a zero gradient, and be
    made.
    """
    settings: dict[str, Any] = {
        "num_steps": 4,
        "checkpoint__every": 1,
        "checkpoint__keep": 4,
        "watchdog__max_skipped": 100,
    }
    with poisoned(3):
        runs.run(start, tmp_path, **settings, update__num_minibatches=1)
    rows = runs.metrics(tmp_path)
    assert [row["update/skipped"] for row in rows[1:]] == [0, 0, 1, 1]
    before, after = (saved_params(tmp_path, step) for step in (2, 4))
    leaves = zip(*(ocp.tree.to_flat_dict(params).items() for params in (before, after)), strict=True)
    assert all(np.array_equal(one, other) for (_, one), (_, other) in leaves)
    files = sorted((tmp_path / "skipped").iterdir())
    assert len(files) == sum(row["update/skipped"] for row in rows[1:])
    assert f"is skipped: {files[0]}" in capsys.readouterr().out
    line = json.loads(files[0].read_text().splitlines()[0])
    assert line["step"] == 3 and line["responses"] and line["token_ids"][0] and line["logprobs"][0][0] == "nan"
    assert all(value is None or np.isfinite(value) for row in rows for value in row.values())


def test_what_could_not_be_saved_is_not_said_to_be(tmp_path):
    watch = SkippedUpdates(0)
    watch.count(1, {0: []})
    for saved, said in ((3, "step 3 is saved without them"), (2, "step 3 could not be saved"), (None, "could not be")):
        with pytest.raises(NotFiniteError, match=said):
            watch.check(3, tmp_path, saved)


def test_too_many_in_a_row_end_the_run_with_a_checkpoint(start, tmp_path):
    with poisoned(1), pytest.raises(NotFiniteError, match=r"2 updates in a row, up to step \d, .*/skipped") as caught:
        runs.run(start, tmp_path, watchdog__max_skipped=1)
    assert "\n" not in str(caught.value)
    last = runs.metrics(tmp_path)[-1]["step"]
    assert last < runs.SETTINGS["num_steps"] and runs.saved_steps(tmp_path)[-1] == last


def test_skips_count_in_a_row_over_steps():
    watch = SkippedUpdates(2)
    for skipped in ({1: []}, {0: []}, {}, {1: []}):  # two in a row, then none, then one
        watch.count(2, skipped)
    assert not watch.alarmed
    watch.count(2, {0: [], 1: []})
    assert watch.alarmed


def test_a_full_disk_is_reported_and_training_goes_on(start, tmp_path, capsys):
    """No file may grow beyond 100 kB while step 3 is saved; with step 6 there is space again."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(step: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000 if step in (3, 4) else limits[0], limits[1]))

    try:
        with runs.after_row(fill):
            runs.run(start, tmp_path, num_steps=7)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert runs.saved_steps(tmp_path) == [6, 7]
    out = capsys.readouterr().out
    assert "!! the checkpoint of step 3 cannot be written" in out and "Training goes on" in out
    assert [row["checkpoint/failed"] for row in runs.metrics(tmp_path)][-1] == 1


def test_rows_and_samples_wait_for_space(straight, start, tmp_path, capsys, monkeypatch):
    """No file may grow at all while steps 1 and 2 end: their records are written with step 3."""
    limits, step = resource.getrlimit(resource.RLIMIT_FSIZE), RunConsole.step

    def step_and_fill(self, number, metrics):
        step(self, number, metrics)  # before the rows are written
        resource.setrlimit(resource.RLIMIT_FSIZE, (10 if number in (1, 2) else limits[0], limits[1]))

    monkeypatch.setattr(RunConsole, "step", step_and_fill)
    try:
        runs.run(start, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    out = capsys.readouterr().out
    assert out.count("metrics.jsonl: File too large: free some space. Training goes on") == 2
    runs.assert_same_end(tmp_path, straight, runs.SETTINGS["num_steps"])


FULL_DISK = """
import resource
from tests import runs
from zppo_jax import main

def fill(step):
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

with runs.after_row(lambda step: fill(step) if step == 2 else None):
    main.main()
"""


def test_a_disk_that_stays_full_ends_the_command_in_one_line(start, tmp_path):
    done = runs.command(runs.arguments(start, tmp_path, num_steps=4, checkpoint__every=1, eval__every=4), FULL_DISK)
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("!! the checkpoint of step") >= 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    line = done.stderr
    assert "the checkpoint of step 4 cannot be written" in line and "continues after step 1" in line


class Disk:
    """Replaces checkpoints: records the calls, and fails in chosen ones."""

    def __init__(self) -> None:
        self.failing: set[str] = set()
        self.done: list[tuple[Any, ...]] = []

    def _do(self, *action: Any) -> None:
        self.done.append(action)
        if action[0] in self.failing:
            raise WorkdirError("no space")

    def save(self, *arguments: Any) -> None:
        self._do("save", *arguments)

    def check(self) -> None:
        self._do("check")

    def finish(self) -> None:
        self._do("finish")


@pytest.mark.parametrize("fails", ["save", "check", "finish"])
def test_a_failed_save_is_reported_once(fails):
    messages: list[str] = []
    disk = Disk()
    saves = Saves(cast(Any, disk), messages.append)

    def attempt(step: int) -> None:
        saves.save(step, "state", {"a": 1}, 0.5) if fails == "save" else getattr(saves, fails)()

    disk.failing = {fails}
    attempt(1)
    disk.failing = set()
    attempt(2)
    assert saves.failed == 1 and len(messages) == 1 and messages[0].startswith("!! no space")
    assert "Training goes on; the next checkpoint is tried in its turn" in messages[0]
    if fails == "save":
        one, two = (("save", step, "state", {"a": 1}, 0.5) for step in (1, 2))
        assert disk.done == [("finish",), one, ("finish",), two], "each waits for the one before"


@pytest.mark.parametrize("fails", ["save", "finish"])
def test_a_failure_of_the_last_save_is_an_error(fails):
    """A failure of the previous one, which is waited for first, still does not end the run."""
    messages: list[str] = []
    disk = Disk()
    saves = Saves(cast(Any, disk), messages.append)
    disk.failing = {fails}
    with pytest.raises(WorkdirError, match="no space"):
        saves.last(3, "state", {}, None)
    assert ("save", 3, "state", {}, None) in disk.done
    assert saves.failed == len(messages) == (fails == "finish")
    disk.failing = set()
    saves.last(4, "state", {}, None)
    assert disk.done[-3:] == [("finish",), ("save", 4, "state", {}, None), ("finish",)]


def test_a_named_step_is_traced_with_its_phases(start, tmp_path):
    runs.run(start, tmp_path, num_steps=2, profile__step=2)
    (trace,) = (tmp_path / "profile").glob("**/perfetto_trace.json.gz")
    names = {event.get("name") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]}
    assert {"rollout", "teacher", "reformulation", "update", "data", "eval"} <= names
    assert list((tmp_path / "profile").glob("**/*.xplane.pb"))
