"""Runs with a recorded teacher: a repetition without the teacher is the same run, to the bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests import runs
from zppo_jax.errors import ConfigError
from zppo_jax.teacher import precompute
from zppo_jax.types import MISS_REASONS

STEPS = 4
SETTINGS = {"num_steps": STEPS, "checkpoint__every": 2, "eval__every": STEPS, "teacher__compress__enabled": True}


@pytest.fixture(scope="module")
def source(start, tmp_path_factory) -> Path:
    """A run that records its teacher."""
    folder = tmp_path_factory.mktemp("recorded")
    return runs.run(start, folder / "run", teacher__record=str(folder / "answers"), **SETTINGS)


def replayed(source: Path) -> dict[str, str]:
    return {"teacher__path": f"recorded:{source.parent / 'answers'}"}


def test_the_repetition_without_the_teacher_is_the_same_run(start, source, tmp_path):
    again = runs.run(start, tmp_path / "again", **replayed(source), **SETTINGS)
    runs.assert_same_end(source, again, STEPS)
    rows = runs.metrics(source)[1:]
    assert sum(row["teacher/asked"] for row in rows) > 0 and sum(row["compress/summaries"] for row in rows) > 0
    assert any(row["zppo/bcq_groups"] for row in rows), "the run shows answers of the teacher"
    assert not any(row["teacher/unanswered"] or row["teacher/unwritten"] for row in rows)


def test_every_exchange_is_a_line(source):
    lines = (source.parent / "answers" / "host-0000.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    asked = sum(row["teacher/asked"] for row in runs.metrics(source)[1:])
    assert sum(row["purpose"] == "answer" for row in found) == asked
    for row in found:
        assert {"step", "purpose", "seed", "model", "sampling", "texts"} <= row.keys()
        assert row["purpose"] == "write" or (row["question"] and row["visit"] == row["step"] and len(row["texts"]) == 4)


def test_a_run_killed_while_it_records_goes_on_as_if_it_were_not(start, source, tmp_path):
    """Killed between a row and its checkpoint: the step is made again, and asks nothing again."""
    changes = {**SETTINGS, "teacher__record": str(tmp_path / "answers")}
    script = runs.SIGNALLED.format(step=3, awaited=str(tmp_path), signal="SIGKILL")
    killed = runs.command(runs.arguments(start, tmp_path / "run", **changes), script)
    assert killed.returncode == -9, killed.stderr
    before = (tmp_path / "answers" / "host-0000.jsonl").read_bytes()
    runs.run(start, tmp_path / "run", **changes)
    runs.assert_same_end(source, tmp_path / "run", STEPS)
    after = (tmp_path / "answers" / "host-0000.jsonl").read_bytes()
    assert after.startswith(before) and sorted(after.splitlines()) == sorted(
        (source.parent / "answers" / "host-0000.jsonl").read_bytes().splitlines()
    )


def test_what_is_missing_is_counted_and_the_run_goes_on(start, source, tmp_path, capsys):
    """A recording without its answers: NCQ alone, with the ends of the responses."""
    folder = shutil.copytree(source.parent / "answers", tmp_path / "answers")
    (folder / "host-0000.jsonl").write_text("")
    workdir = runs.run(start, tmp_path / "run", teacher__path=f"recorded:{folder}", **SETTINGS)
    rows = runs.metrics(workdir)[1:]
    assert len(rows) == STEPS
    for row in rows:
        assert row["teacher/unanswered"] == row["teacher/unanswered/missing"] == row["teacher/asked"]
        assert row["teacher/unwritten"] == row["compress/summaries"] == row["compress/refused/student/unwritten"]
        assert row["zppo/bcq_groups"] == 0
        assert not any(row[f"teacher/unanswered/{reason}"] for reason in MISS_REASONS if reason != "missing")
    assert any(row["zppo/ncq_groups"] for row in rows)
    said = capsys.readouterr().out
    assert "!! the teacher left a question unanswered: missing; the step goes on without" in said
    assert f"teacher missing {rows[0]['teacher/asked']}" in said


def test_another_seed_needs_answers_that_were_sampled_beforehand(start, source, tmp_path, monkeypatch, capsys):
    other = {**SETTINGS, "seed": 1, "teacher__compress__enabled": False}
    with pytest.raises(ConfigError, match="holds the answers to a run with seed=0, and this run has seed=1"):
        runs.run(start, tmp_path / "refused", **replayed(source), **other)
    words = [word for word in runs.arguments(start, tmp_path, **other) if not word.startswith("--workdir")]
    precompute.main(["precompute", *words, f"--out={tmp_path / 'answers'}", "--visits=2"])
    assert "16 of 16 visits are recorded, 0 cannot be used" in capsys.readouterr().out
    answered = runs.run(start, tmp_path / "run", teacher__path=f"recorded:{tmp_path / 'answers'}", **other)
    rows = runs.metrics(answered)[1:]
    assert sum(row["teacher/asked"] for row in rows) > 0 and not any(row["teacher/unanswered"] for row in rows)
    lines = (tmp_path / "answers" / "host-0000.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "answers" / "host-0000.jsonl").write_bytes(b"".join(lines[:5]))
    precompute.main(["precompute", *words, f"--out={tmp_path / 'answers'}", "--visits=2"])
    redone = (tmp_path / "answers" / "host-0000.jsonl").read_bytes().splitlines(keepends=True)
    assert sorted(redone) == sorted(lines), "it continues, and samples the same again"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher__record": "x"}, "teacher.record = 'x': teacher.path names a recording already"),
        ({"judge__endpoint": "teacher"}, "judge.endpoint = 'teacher' is a recording"),
    ],
)
def test_settings_that_contradict_a_recording(start, changes, words):
    with pytest.raises(ConfigError, match=words):
        runs.config(start, teacher__path="recorded:x", **changes)
