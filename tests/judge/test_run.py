"""A run whose golds only a judge can decide: by its own teacher, and at an endpoint that is there or not.

The teacher of these runs cannot judge: nothing that it writes is a verdict, which is wrong and counted.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from typing import Any

import pytest

from tests import runs
from tests.parallel import test_hosts
from tests.remote.processes import Scripted
from zppo_jax import train
from zppo_jax.data import sources
from zppo_jax.data.digits import DigitsSource
from zppo_jax.types import Question

NUM_STEPS = 4
SMALL: dict[str, Any] = {
    "num_steps": NUM_STEPS,
    "checkpoint.every": 2,
    "eval.every": 2,
    "eval.num_questions": 4,
    "judge.max_tokens": 4,
    "zppo.augmentation_fraction": 0.25,
}


@dataclasses.dataclass(frozen=True)
class Spoken(DigitsSource):
    """The embedded questions, with golds that only a judge decides."""

    @property
    def answer_types(self) -> dict[str, int]:
        return {"free_form": len(self)}

    def __getitem__(self, index: int) -> Question:
        return dataclasses.replace(super().__getitem__(index), answer_type="free_form")


@pytest.fixture(autouse=True)
def spoken(monkeypatch):
    monkeypatch.setattr(sources, "DigitsSource", Spoken)


def counts(workdir, name: str) -> list[int]:
    return [row[f"judge/{name}"] for row in runs.metrics(workdir)]


def test_a_run_without_a_judge_is_refused_at_its_start(start, tmp_path):
    with pytest.raises(ValueError, match=r"8 of the 8 questions have golds that only a judge .* set judge\.endpoint"):
        runs.run(start, tmp_path, **SMALL)


@pytest.mark.slow
def test_the_runs_teacher_judges_and_an_interrupted_run_ends_alike(start, tmp_path, capsys):
    """An error after the row of step 3 loses the step; it is made again, with the verdicts of its first attempt."""
    judged: dict[str, Any] = SMALL | {"judge.endpoint": "teacher"}
    whole = runs.run(start, tmp_path / "whole", **judged)
    malformed, failed = counts(whole, "malformed"), counts(whole, "failed")
    assert len(malformed) == NUM_STEPS + 1 and all(malformed) and not any(failed)
    assert malformed == [sum(pair) for pair in zip(counts(whole, "judged"), counts(whole, "cached"), strict=True)]
    for row, count in zip(runs.metrics(whole)[1:], malformed[1:], strict=True):
        assert row["rollout/undecided"] == 0 and count >= row["reward/judge_malformed"] > 0
    statuses = {status for row in runs.samples(whole) for status in row["statuses"]}
    assert "judge_malformed" in statuses and "needs_judge" not in statuses
    assert "undecided" not in capsys.readouterr().out, "what the judge decided is not left over"

    cut = tmp_path / "cut"
    with runs.undrawn(), pytest.raises(ZeroDivisionError), train.Run.open(runs.config(start, **judged), cut) as run:
        for step in run:
            assert step.number != 3 or 1 / 0
    assert runs.saved_steps(cut) == [2] and runs.metrics(cut)[-1]["step"] == 3
    runs.run(start, cut, **judged)
    runs.assert_same_end(cut, whole, NUM_STEPS)
    kept = [sqlite3.connect(one / "verdicts.sqlite").execute("SELECT count(*) FROM verdicts") for one in (whole, cut)]
    assert kept[0].fetchone() == kept[1].fetchone()


@pytest.mark.slow
def test_an_endpoint_decides_and_a_run_that_is_made_again_asks_nothing(start, tmp_path, endpoint: Scripted):
    """Its verdicts are the rewards; with the verdicts of an earlier run there is nothing left to ask."""
    judged: dict[str, Any] = SMALL | {"judge.endpoint": endpoint.url, "judge.model": "odd"}
    one, other = tmp_path / "one", tmp_path / "other"
    runs.run(start, one, "grpo", **judged)
    assert all(counts(one, "judged")) and not any(counts(one, "malformed") + counts(one, "failed"))
    responses = [
        (reward, answer != row["gold"], status)
        for row in runs.samples(one)
        for reward, answer, status in zip(row["rewards"], row["answers"], row["statuses"], strict=True)
    ]
    assert {(1.0, True, "ok"), (0.0, True, "ok"), (1.0, False, "ok")} <= set(responses)
    asked = len(endpoint.requests("odd"))
    other.mkdir()
    (other / "verdicts.sqlite").write_bytes((one / "verdicts.sqlite").read_bytes())
    runs.run(start, other, "grpo", **judged)
    assert len(endpoint.requests("odd")) == asked > 0
    runs.assert_same_end(one, other, NUM_STEPS)


@pytest.mark.slow
def test_a_run_goes_on_without_its_endpoint(start, tmp_path, capsys):
    """Nobody listens: the console says so at once, groups that are not decided are not used, and the run ends."""
    url = f"http://127.0.0.1:{runs.free_port()}/v1"
    changes: dict[str, Any] = SMALL | {"judge.endpoint": url, "judge.model": "m", "judge.retries": 0, "num_steps": 2}
    workdir = runs.run(start, tmp_path, "grpo", **changes)
    said = capsys.readouterr().out
    assert said.count(f"the judge at {url} is not asked again in this step") == 3, "before training and in two steps"
    assert said.index("is not asked again") < said.index("step 1/2") and "judge failed" in said
    for row in runs.metrics(workdir)[1:]:
        assert row["judge/failed"] >= row["rollout/undecided"] > 0
    assert runs.saved_steps(workdir) == [2]


TWO_HOSTS = """
from tests import runs
from tests.judge.test_run import Spoken
from zppo_jax import main
from zppo_jax.data import sources

sources.DigitsSource = Spoken
with runs.undrawn():
    main.main()
"""


@pytest.mark.slow
def test_on_two_hosts_each_teacher_judges_what_its_host_has_sampled(start, tmp_path):
    """The verdicts are those of one host, and the counts are of both."""
    changes: dict[str, Any] = {"judge__endpoint": "teacher", "judge__max_tokens": 4}
    changes |= {"num_steps": 1, "zppo__augmentation_fraction": 0.0}
    changes |= {"mesh__data": -1, "mesh__fsdp": 1, "mesh__tensor": 1}  # quickly compiled
    one = runs.run(start, tmp_path / "one", **test_hosts.CHANGES | changes)
    with test_hosts.Run(start, tmp_path / "two", TWO_HOSTS, **changes) as run:
        for status, _, error in run.ended():
            assert status == 0, error[-3000:]
    found = [
        {uid: (row["rewards"], row["statuses"]) for uid, row in test_hosts.samples(each).items()}
        for each in (one, tmp_path / "two")
    ]
    assert found[0] == found[1]
    assert counts(one, "malformed") == counts(tmp_path / "two", "malformed")
    assert (tmp_path / "two" / "hosts" / "1" / "verdicts.sqlite").exists()
