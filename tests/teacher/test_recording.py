"""Recordings: which row counts does not depend on when it was written, and no damage is silent."""

from __future__ import annotations

import itertools
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zppo_jax.errors import ConfigError
from zppo_jax.keys import RandomStream
from zppo_jax.processor.media import Picture
from zppo_jax.teacher.recording import Recording
from zppo_jax.teacher.rows import PRECOMPUTED
from zppo_jax.types import Answer, Missed, Prompt, Question

ABOUT: dict[str, Any] = {"model": "m", "seed": 3, "sampling": {"num_rollouts": 2}}
ODD = ["plain", "two\nlines\u2028and three", "\x1b[2J \x00", "half \ud83d of a pair", '{"reason": "late"}\n', ""]


def answers(*texts: str) -> list[Answer]:
    return [Answer(text, "stop") for text in texts]


def asked(name: str, text: str = "How many?", images: Sequence[Any] = ()) -> Prompt:
    return Prompt(f"1/{name}/plain", "plain", Question(name, text, images, "7", "math"), text)


def recorded(folder: Path, host: int = 0, **about: Any) -> Recording:
    return Recording(folder, ABOUT | about, host)


@pytest.mark.parametrize("text", ODD)
def test_texts_come_back_as_they_were(tmp_path, text):
    made = recorded(tmp_path)
    made.add_answers(asked("q"), 1, [Answer(text, "length"), Answer("b", "stop")])
    made.add_text(f"ask {text}", 1, text)
    made.close()
    for reread in (recorded(tmp_path), Recording(tmp_path)):
        assert reread.answers(asked("q"), 1) == (Answer(text, "length"), Answer("b", "stop"))
        assert reread.text(f"ask {text}", 1) == text
        assert (
            reread.answers(asked("q"), 2) is None
            and reread.answers(asked("other"), 1) is None
            and reread.text("ask", 1) is None
        )
        reread.close()


def test_another_question_under_the_same_id_has_no_answer(tmp_path):
    """Ids may be row numbers: another text or another picture is another question."""
    white = np.full((32, 32, 3), 255, np.uint8)
    made = recorded(tmp_path)
    made.add_answers(asked("0", images=[white]), 1, answers("a"))
    made.add_answers(asked("0", images=[Picture(b"file")]), PRECOMPUTED, answers("b"), 1)
    assert made.answers(asked("0", images=[white.copy()]), 1) == tuple(answers("a"))
    assert made.visits(asked("0", images=[Picture(b"file", "renamed")])) == {1}
    others = ([white[:16]], [white - 1], [], [Picture(b"other")], [white, white])
    for prompt in (*(asked("0", images=images) for images in others), asked("0", "How many", [white])):
        assert made.answers(prompt, 1) is None and not made.visits(prompt)
    made.close()


def test_which_answer_counts(tmp_path):
    """Rows in any order: one with an answer before one without, each for its step only."""
    rows = [("q", 1, Missed("late")), ("q", 1, answers("a")), ("q", 2, Missed("timeout")), ("q", 2, Missed("refused"))]
    for number, order in enumerate(itertools.permutations(rows[:2])):
        made = recorded(tmp_path / str(number))
        for row in [*order, *rows[2:]]:
            made.add_answers(asked(row[0]), *row[1:])
        assert made.answers(asked("q"), 1) == tuple(answers("a"))
        found = made.answers(asked("q"), 2)
        assert isinstance(found, Missed) and found.reason == "refused", "the last of the failures"
        made.close()


def test_which_text_counts(tmp_path):
    """From its step on, the first of them; a failure only at its step; this host's rows before another's."""
    made = recorded(tmp_path, host=1)
    for step, text in ((7, "seven"), (5, "five"), (6, Missed("late")), (4, Missed("timeout"))):
        made.add_text("ask", step, text)
    made.close()
    other = recorded(tmp_path, host=0)
    other.add_text("ask", 2, "two")
    other.add_text("only here", 2, "two")
    other.close()
    made = recorded(tmp_path, host=1)
    found = {step: made.text("ask", step) for step in (1, 2, 4, 5, 6, 7, 8)}
    assert found.pop(4) == Missed("timeout", "recorded")
    assert found == {1: None, 2: "two", 5: "five", 6: "five", 7: "five", 8: "five"}
    assert made.text("only here", 2) == "two" and made.text("only here", 1) is None
    made.close()


def test_answers_sampled_before_any_run_are_drawn(tmp_path):
    made = recorded(tmp_path)
    for visit in (1, 2):
        made.add_answers(asked("q"), PRECOMPUTED, answers(*(f"{visit}{letter}" for letter in "abc")), visit)
    assert made.visits(asked("q")) == {1, 2} and made.has_precomputed and not made.visits(asked("r"))
    drawn = [made.precomputed(asked("q"), 4, RandomStream(3, step, "teacher")) for step in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1, "another draw at each step, the same at each repetition"
    assert all(one is not None and len(set(one)) == 4 for one in drawn)
    assert len(made.precomputed(asked("q"), 9, RandomStream(3, 1, "teacher")) or ()) == 6
    assert made.precomputed(asked("r"), 4, RandomStream(3, 1, "teacher")) is None
    made.close()


def test_a_line_cut_off_by_a_kill_is_written_again(tmp_path):
    made = recorded(tmp_path)
    made.add_answers(asked("q"), 1, answers("a"))
    made.add_answers(asked("r"), 1, answers("b"))
    made.close()
    file = tmp_path / "host-0000.jsonl"
    whole = file.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first + 1, len(whole), 40):
        file.write_bytes(whole[:cut])
        made = recorded(tmp_path)
        assert made.answers(asked("q"), 1) == tuple(answers("a")) and made.answers(asked("r"), 1) is None
        made.add_answers(asked("r"), 1, answers("b"))
        assert made.answers(asked("r"), 1) == tuple(answers("b"))
        made.close()
        assert file.read_bytes() == whole


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"step": 1, "purpose": "answer", "question": "q", "prompt": "", "reason": "", "texts": [], "finish": []}',
        b'{"step": 1, "purpose": "answer", "question": "q", "prompt": "", "reason": "odd", "texts": [], "finish": []}',
        b'{"step": 1, "purpose": "write", "ask": "no hex", "reason": "late", "texts": [], "finish": []}',
        b'{"step": Infinity, "purpose": "write", "ask": "00", "reason": "late", "texts": [], "finish": []}',
        b'{"step": 1, "purpose": "write", "ask": "00", "reason": "", "texts": [null], "finish": ["stop"]}',
        b'{"step": 1, "purpose": "write", "ask": "00", "reason": "", "texts": ["a"], "finish": ["odd"]}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_line_is_reported_and_the_others_count(tmp_path, line):
    made = recorded(tmp_path)
    made.add_answers(asked("q"), 1, answers("a"))
    made.close()
    file, said = tmp_path / "host-0000.jsonl", []
    file.write_bytes(line + b"\n" + file.read_bytes())
    reread = Recording(tmp_path, report=said.append)
    assert reread.answers(asked("q"), 1) == tuple(answers("a"))
    assert len(said) == 1 and "line 1 is damaged" in said[0]


def test_what_a_recording_is_about_may_not_change(tmp_path):
    recorded(tmp_path).close()
    changed: dict[str, Any] = {"model": "n", "seed": 4, "sampling": {"num_rollouts": 3}}
    for name, value in changed.items():
        with pytest.raises(ConfigError, match=f"records exchanges with {name} .*: name another folder"):
            Recording(tmp_path, ABOUT | {name: value})
    recorded(tmp_path).close()


def test_a_folder_without_a_recording_is_refused(tmp_path):
    for content in (None, b"", b"[]", b'{"version": 9}', b"\xff"):
        if content is not None:
            (tmp_path / "recording.json").write_bytes(content)
        with pytest.raises(ConfigError, match="holds no recording of a teacher"):
            Recording(tmp_path)


def test_what_cannot_be_read_is_one_line(tmp_path):
    recorded(tmp_path).close()
    (tmp_path / "host-0001.jsonl").mkdir()
    with pytest.raises(ConfigError, match=r"host-0001.jsonl cannot be read \(Is a directory\)"):
        Recording(tmp_path)


def test_two_runs_do_not_share_a_file(tmp_path):
    first = recorded(tmp_path)
    with pytest.raises(ConfigError, match=r"host-0000.jsonl is in use by another run"):
        recorded(tmp_path)
    recorded(tmp_path, host=1).close()
    first.close()
    recorded(tmp_path).close()


_FULL = """
import resource, signal, sys
from pathlib import Path
from tests.teacher.test_recording import answers, asked, recorded
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
made = recorded(Path(sys.argv[1]))
made.add_answers(asked("q"), 1, answers("a"))
size = (Path(sys.argv[1]) / "host-0000.jsonl").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, resource.RLIM_INFINITY))
made.add_answers(asked("r"), 1, answers("b"))
made.add_answers(asked("s"), 1, answers("c"))
assert made.answers(asked("r"), 1) == tuple(answers("b")), "a row that waits counts"
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
made.add_answers(asked("t"), 1, answers("d"))
made.close()
"""


def test_rows_wait_for_space(tmp_path):
    """A full disk, here a limit on the size of files, is reported once, and nothing is lost."""
    assert resource.RLIMIT_FSIZE
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(tmp_path)], capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("free some space") == 1
    rows = [json.loads(line) for line in (tmp_path / "host-0000.jsonl").read_bytes().splitlines()]
    assert [row["question"] for row in rows] == ["q", "r", "s", "t"]
