"""The command line: its table, its help, its mistakes, its progress in a log and on a terminal."""

from __future__ import annotations

import dataclasses
import io
import os
import pty
import re
import shutil
import subprocess

import pytest

from tests.data import miniature
from tests.data.zppo77k.conftest import command
from zppo_jax.command.heartbeat import Heartbeat
from zppo_jax.data.progress import Progress
from zppo_jax.data.zppo77k import __main__ as program
from zppo_jax.data.zppo77k.recipe import TABLE, Settings


def output(capsys, *argv: str) -> str:
    program.main(["zppo77k", *argv])
    return capsys.readouterr().out


def mistake(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        program.main(["zppo77k", *argv])
    assert ended.value.code == 2
    errors = capsys.readouterr().err.strip().splitlines()
    return errors[-1]


def test_the_list_prints_every_row(capsys):
    text = output(capsys, "--list", "--include=walton", "--cap_tier2=7")
    for row in TABLE:
        assert re.search(rf"^{row.corpus} +{re.escape(row.upstream)} +{row.name} ", text, re.M), row
    assert re.search(r"stem-tqa +tqa +1 +2,800 +multiple_choice", text)
    assert re.search(r"WaltonColdStart +walton +- +7 ", text)
    assert re.search(r"GameQA-140K +gameqa +- +- ", text)


def test_the_help_says_every_setting_and_its_default(capsys):
    text = output(capsys, "--help")
    for field in dataclasses.fields(Settings):
        assert f"--{field.name}={field.default}" in text, field.name


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--vero=x"], "--out is missing"),
        (["--out=x"], "--vero and --mmfinereason are missing"),
        (["--out=x", "--vero=.", "--tokenizer=/nowhere"], "--tokenizer=/nowhere does not load"),
        (["--out=x", "--cap_per=row"], "cap_per"),
        (["--out=x", "--max_pass_rate=2"], "max_pass_rate"),
        (["--out=x", "--vero=.", "--include=tqa2"], "'tqa2' is not a sub-dataset of the table"),
        (["--out=x", "--colour=red"], "colour"),
    ],
)
def test_mistakes_are_one_line(capsys, argv, words):
    assert words in mistake(capsys, *argv)


def test_the_log_has_progress_and_the_counts(corpora, tmp_path):
    """Without a network: the package's own tokenizer serves, and the log says so."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(miniature.picture(1101, 0))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    flags = [f"--out={tmp_path / 'out'}", "--workers=1", f"--decontaminate={tmp_path / 'a'},{tmp_path / 'b'}"]
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    made = command(*corpora.flags, *flags, f"--decontaminate={tmp_path / 'a'}")
    ended = subprocess.run(made, capture_output=True, text=True, check=True, env=offline)
    assert re.search(r"^Qwen/Qwen3.5-0.8B is out of reach .* give --tokenizer=DIR", ended.stderr, re.M)
    assert re.search(r"^reading evaluation data: 2 files", ended.stderr, re.M)
    assert re.search(r"^geomverse .* decontaminated 1$", ended.stdout, re.M)
    assert re.search(r"^reading rows: \d+ rows in \d+ s", ended.stderr, re.M)
    assert re.search(r"^writing: \d+ questions in \d+ s", ended.stderr, re.M)
    assert re.search(r"^mmr1 +1 +17 +8 +pass_rate_missing 1, pass_rate 2,", ended.stdout, re.M)
    assert re.search(rf"^\d+ questions in {tmp_path}/out$", ended.stdout, re.M)


def test_progress_in_a_log_has_rate_and_time_left(monkeypatch):
    heartbeat, log = Heartbeat(), io.StringIO()
    clock = iter([0.0, *[10.0] * 20])
    monkeypatch.setattr("zppo_jax.data.progress.time.monotonic", lambda: next(clock))
    said = []
    monkeypatch.setattr(heartbeat, "during", lambda what: _Recording(said, what))
    with Progress(log, heartbeat).stage("reading rows", "rows", 5000, 1000) as advance:
        advance(1000)
    assert said[-1] == "reading rows: 2,000 of 5,000 rows, 100 rows/s, 30 s left"
    assert log.getvalue() == "reading rows: 2,000 rows (1,000 of an earlier run) in 10 s (100 rows/s)\n"


class _Recording:
    """In the place of the heartbeat's phase: records what it is told."""

    def __init__(self, said: list[str], what: str):
        self._said, self._what = said, what

    def __enter__(self):
        return lambda words: self._said.append(f"{self._what}: {words}")

    def __exit__(self, *_: object) -> None:
        pass


def test_a_terminal_shows_a_bar():
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        with Progress(terminal, Heartbeat()).stage("reading rows", "rows", 4) as advance:
            advance(4)
        terminal.flush()
        shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "4 of 4 rows" in shown and "━" in shown
