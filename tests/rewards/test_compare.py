"""python -m zppo_jax.rewards.compare: both graders on a file, and what it says about bad lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zppo_jax.rewards import compare
from zppo_jax.rewards.grade import ANSWER_TYPES

LINES = [
    {"response": r"\boxed{0.5}", "gold": r"\frac{1}{2}", "correct": True},
    {"response": r"\boxed{5}", "gold": "6", "correct": False},
    {"response": r"\boxed{5\text{ m}}", "gold": r"5\text{ cm}", "type": "math", "correct": False},
    {"response": r"\boxed{paris}", "gold": "B", "type": "multiple_choice", "options": {"choices": ["Rome", "Paris"]}},
    # Without its alarm, math-verify computes this number.
    {"response": r"\boxed{10000000!}", "gold": "5", "correct": False},
]
BAD = [
    "{",
    "[1]",
    '{"response": "x"}',
    '{"response": 5, "gold": "5"}',
    '{"response": "x", "gold": "5", "type": "maths"}',
]


def test_the_table_counts_where_both_differ_and_a_hang_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "answers.jsonl", tmp_path / "differences.jsonl"
    file.write_text("\n".join([*map(json.dumps, LINES), "", *BAD]))
    compare.main(["compare", str(file), "--workers=1", "--seconds=2", f"--out={out}"])
    printed = capsys.readouterr()
    named = [line for line in printed.err.splitlines() if line.startswith("left out")]
    assert [line.split(":")[1].split()[-1] for line in named] == ["7", "8", "9", "10", "11"]
    assert "'gold' is missing" in named[2] and "'maths'" in named[4]
    rows = {line.split()[0]: line.split()[1:] for line in printed.out.splitlines() if line.split()}
    #                    rows, both right and wrong, only ours and theirs, undecided, failed, errors of both
    assert rows["math"] == ["4", "1", "2", "0", "1", "0", "1", "0", "0", "1", "0"]
    assert rows["all"] == ["5", "1", "2", "1", "1", "0", "1", "0", "0", "1", "0"]
    differences = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(one["id"], one["ours"]["correct"], one["theirs"]) for one in differences] == [
        ("3", False, True),
        ("4", True, False),
    ]


def test_the_help_teaches_and_a_missing_file_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    compare.main(["compare", "--help"])
    text = capsys.readouterr().out
    assert all(kind in text for kind in ANSWER_TYPES) and '"gold": "0.5"' in text
    with pytest.raises(SystemExit):
        compare.main(["compare", "nowhere.jsonl"])
    assert "nowhere.jsonl" in capsys.readouterr().err
