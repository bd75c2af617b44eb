"""The console: plain lines in a file, and the same information on a terminal."""

from __future__ import annotations

import io

from zppo_jax.run.console import RunConsole, step_line

METRICS = {
    "rollout/new_accuracy": 0.52,
    "rollout/new_hard_fraction": 0.4,
    "replay/size": 12,
    "replay/graduated_total": 3,
    "rollout/tokens_per_second": 3456.2,
}


def show(live: bool, tmp_path) -> str:
    (tmp_path / "metrics.jsonl").write_text("")
    file = io.StringIO()
    with RunConsole(num_steps=2, file=file, live=live) as console:
        with console.compiling("sampler [bold]"):
            pass
        console.start_clock()
        console.step(1, METRICS)
        console.results(
            {"all": (0.5, 0.48, 0.52), "old": (0.0, 0.0, 0.007)},
            {"all": (0.7, 0.679, 0.721), "new [x]": (0.9, 0.88, 0.91)},
            "after 2 steps",
        )
        console.files(tmp_path)
    return file.getvalue()


def test_a_file_gets_plain_lines(tmp_path):
    text = show(False, tmp_path)
    assert text.isascii() and not any(ord(character) < 32 and character != "\n" for character in text)
    lines = text.splitlines()
    assert lines[0] == "compiling sampler [bold] ..."
    assert lines[1].startswith("compiled sampler [bold] in 0.") and lines[1].endswith(" s")
    assert lines[2] == step_line(1, 2, METRICS, 0)
    words = [" ".join(line.split()) for line in lines]
    assert "| all | 50.0 (48.0 to 52.0) | 70.0 (67.9 to 72.1) | +20.0 |" in words
    assert "| old | 0.0 (0.0 to 0.7) | - | - |" in words
    assert "| new [x] | - | 90.0 (88.0 to 91.0) | - |" in words
    assert any(line.split()[:1] == ["metrics.jsonl"] for line in lines) and "curves.png" not in text


def test_a_terminal_shows_the_same_facts(tmp_path):
    text = show(True, tmp_path)
    assert "\x1b[" in text
    assert all(word in text for word in ("compiled sampler [bold] in", "70.0 (67.9 to 72.1)", "metrics.jsonl"))


def test_a_failed_compilation_is_not_reported_as_done():
    file = io.StringIO()
    console = RunConsole(1, file=file)
    try:
        with console.compiling("update"):
            raise RuntimeError
    except RuntimeError:
        pass
    assert file.getvalue() == "compiling update ...\n"


def test_step_line():
    line = step_line(7, 120, METRICS, 3725)
    whole = "step 7/120 accuracy 52 % hard 40 % buffer 12 graduated 3 3456 tokens/s 1:02:05 left"
    assert " ".join(line.split()) == whole
    absent = step_line(7, 120, {"rollout/new_accuracy": None, "rollout/new_hard_fraction": float("nan")}, 5)
    assert " ".join(absent.split()) == "step 7/120 accuracy - hard - buffer - graduated - - tokens/s 0:05 left"


def test_the_step_line_says_what_was_lost_where_anything_was():
    lost = step_line(7, 120, METRICS | {"zppo/too_long": 3, "rollout/undecided": 2}, 3725)
    assert lost.endswith("1:02:05 left  too long 3  undecided 2")
    nothing = step_line(7, 120, METRICS | {"zppo/too_long": 0, "rollout/undecided": 0}, 3725)
    assert nothing.endswith("1:02:05 left")
