"""data.check and data.inspect on small data with bad rows in them."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.data.test_sources import png
from zppo_jax.data import check, inspect
from zppo_jax.files import SHIPPED

HOSTILE = "<script>alert(1)</script> <img src=x onerror=alert(2)>"


@pytest.fixture
def data(tmp_path) -> Path:
    image = base64.b64encode(png(3)).decode()
    rows: list[dict[str, Any]] = [
        {"id": f"q{n}", "question": f"read {n}", "answer": n, "answer_type": "integer", "image": image, "level": "easy"}
        for n in range(20)
    ]
    rows[4]["answer"] = None
    rows[7]["image"] = base64.b64encode(png(90)[:-30]).decode()
    rows[9]["question"] = "read " * 500
    rows[11] |= {"answer_type": "free_form", "answer": "because", "level": HOSTILE}
    rows[12]["question"] = rows[13]["book"] = HOSTILE
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_check_names_the_bad_rows(data, capsys, monkeypatch):
    monkeypatch.chdir(data)
    root = Path(check.__file__).parents[2]
    argv = ["check", f"--config={root}/configs/tiny.py", f"--config.data.source=jsonl:{data}", "--threads=2"]
    with pytest.raises(SystemExit) as ended:
        check.main(argv)
    assert ended.value.code == 1
    shown = capsys.readouterr().out
    assert f"jsonl:{data}: 20 rows (1 free_form, 19 integer), 3 cannot be used" in shown
    assert re.search(r"gold +1  q4", shown) and "1 answers can only be scored by a judge" in shown
    rows = [json.loads(line) for line in (data / "bad_rows.jsonl").read_text().splitlines()]
    found = {row["question_id"]: (row["row"], row["reason"]) for row in rows}
    assert found == {"q4": (4, "gold"), "q7": (7, "image_unreadable"), "q9": (9, "prompt_too_long")}


def test_check_of_good_data_ends_well(data, capsys):
    root = Path(check.__file__).parents[2]
    check.main(["check", f"--config={root}/configs/tiny.py", "--config.data.num_questions=32"])
    assert "digits: 32 rows (32 string), 0 cannot be used" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        check.main(["check", "--threads=2"])
    assert ended.value.code == 2 and "--config is missing" in capsys.readouterr().err


def test_inspect_counts_and_shows(data, capsys):
    inspect.main(["inspect", str(data), f"--out={data}/page.html", "--samples=20"])
    shown = capsys.readouterr().out
    for line in (
        "17  easy",
        "17  integer",
        "18  longer side up to 64",
        "1  gold",
        "1  image_unreadable",
        "20 questions",
    ):
        assert re.search(rf"{line}\b", shown), line
    page = (data / "page.html").read_text()
    assert page.count("<article>") == 20 and page.count('src="data:image/jpeg;base64,') == 18
    assert "<script" not in page and "<img src=x" not in page and "&lt;script&gt;" in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    again = data / "again.html"
    inspect.main(["inspect", f"jsonl:{data}", f"--out={again}", "--samples=20"])
    assert again.read_text().count("<article>") == 20


def test_inspect_with_other_columns_and_without_a_source(data, capsys):
    (data / "data.jsonl").write_text(json.dumps({"problem": "a?", "solution": "1"}) + "\n")
    inspect.main(
        ["inspect", str(data / "data.jsonl"), f"--out={data}/p.html", "--columns=question=problem,answer=solution"]
    )
    assert "1  math" in capsys.readouterr().out
    for argv, message in (
        ([], "give one source"),
        (["a", "b"], "give one source"),
        (["x", "--columns=a=b"], "NAME one of"),
    ):
        with pytest.raises(SystemExit) as ended:
            inspect.main(["inspect", *argv])
        assert ended.value.code == 2 and message in capsys.readouterr().err


def test_hostile_names_and_narrow_images_end_no_command(tmp_path, capsys, monkeypatch):
    """Control sequences reach no terminal, whatever an id or level holds; what no prompt can hold is a bad row."""
    monkeypatch.chdir(tmp_path)
    file = io.BytesIO()
    Image.new("RGB", (1, 5000)).save(file, "PNG")
    row = {"id": "a\x1b[2J\nb", "level": "\x1b[31m\ud800\nred", "question": "How many?", "answer": "1"}
    rows = [row, row | {"id": "c\x1b[2J", "image": base64.b64encode(file.getvalue()).decode()}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    inspect.main(["inspect", str(tmp_path), f"--tokenizer={SHIPPED / 'student'}"])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "1  \ufffd[31m? red\n" in shown and "1  image_unreadable" in shown
    root = Path(check.__file__).parents[2]
    argv = ["check", f"--config={root}/configs/tiny.py", f"--config.data.source=jsonl:{tmp_path}"]
    with pytest.raises(SystemExit) as ended:
        check.main([*argv, f"--out={tmp_path}/none/bad.jsonl"])
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out and "c\ufffd[2J" in shown.out and ended.value.code == 1
    assert re.fullmatch(
        r"zppo_jax: --out=.* cannot be written \(No such file.*\): give another file", last_line(shown.err)
    )
    with pytest.raises(SystemExit) as ended:
        inspect.main(["inspect", str(tmp_path), f"--tokenizer={tmp_path}/none"])
    assert ended.value.code == 2 and "--tokenizer=" in last_line(capsys.readouterr().err)


def last_line(text: str) -> str:
    return text.rstrip().splitlines()[-1]


def test_an_interrupt_while_the_configuration_is_read_is_one_line(monkeypatch, capsys):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(check.command, "read_config", interrupted)
    with pytest.raises(SystemExit) as ended:
        check.main(["check", "--config=any.py"])
    assert ended.value.code == 130 and capsys.readouterr().err == "zppo_jax: stopped\n"
