"""Questions from rows: what each column may hold, what is refused and why, and what a run does with bad rows."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import sys
from typing import Any

import pytest

from tests import tiny_model
from tests.data.test_sources import config, png
from zppo_jax.data import sources
from zppo_jax.data.pipeline import open_stream
from zppo_jax.data.processing import EncodedPrompt, PromptProcessing
from zppo_jax.data.questions import REASONS, BadRow, Reader
from zppo_jax.data.reading import Reading, Room, Skipped
from zppo_jax.errors import RunError
from zppo_jax.types import IMAGE_MARK, VIDEO_MARK, Question

COLUMNS = config("digits").data.columns
READER = Reader(COLUMNS, "math", False)
ROW: dict[str, Any] = {"question": "a?", "answer": "7"}
PNG = png(3)


def read(home: Any = None, reader: Reader = READER, **changes: Any) -> Question:
    return reader.question(ROW | changes, "q", None if home is None else str(home))


def test_a_text_alone():
    question = read(level="easy", source="book", page=3, share=0.5, long="x" * 300, nothing=None, parts=[1])
    assert (question.text, question.answer, question.answer_type, question.level) == ("a?", "7", "math", "easy")
    assert not question.images and not question.videos and not question.options
    assert question.metadata == {"source": "book", "page": 3, "share": 0.5}
    assert read(metadata='{"tier": 1}', tier=2).metadata == {"tier": 1}


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"question": "<image>\nWhat?", "image": PNG}, "What?"),
        ({"question": " <image><image>What?", "images": [PNG, PNG]}, "What?"),
        ({"question": "What?", "images": [PNG, PNG]}, "What?"),
        ({"question": "Is <image> in <image>?", "images": [PNG, PNG]}, f"Is {IMAGE_MARK} in {IMAGE_MARK}?"),
        ({"question": "<video> or <image>?", "image": PNG, "video": b"v"}, f"{VIDEO_MARK} or {IMAGE_MARK}?"),
        ({"question": "<image><video>Which?", "image": PNG, "videos": [b"v"]}, "Which?"),
        ({"question": f"{IMAGE_MARK} a {IMAGE_MARK[0]}", "image": PNG}, "image a "),
    ],
)
def test_placeholders_become_places(columns, text):
    assert read(**columns).text == text


def test_images_in_every_form(tmp_path):
    home = tmp_path / "data"
    (home / "sub").mkdir(parents=True)
    (home / "sub" / "a.png").write_bytes(PNG)
    encoded = base64.b64encode(PNG).decode()
    forms = [
        PNG, "sub/a.png", str(home / "sub" / "a.png"), encoded, f"data:image/png;base64,{encoded}",
        {"bytes": PNG, "path": "any.png"}, {"bytes": None, "path": "sub/a.png"}, {"path": "sub/../sub/a.png"},
    ]  # fmt: skip
    question = read(home, images=forms)
    assert [picture.content for picture in question.images] == [PNG] * len(forms)
    assert [picture.content for form in forms for picture in read(home, image=form).images] == [PNG] * len(forms)
    assert read(home, images=None).images == read(home, images=[]).images == []


def test_paths_may_not_leave_the_directory_of_their_file(tmp_path):
    home = tmp_path / "data"
    home.mkdir()
    (tmp_path / "secret.png").write_bytes(PNG)
    (home / "link.png").symlink_to(tmp_path / "secret.png")
    for path in ("../secret.png", str(tmp_path / "secret.png"), "link.png", "a/../../secret.png"):
        with pytest.raises(BadRow, match=r"outside: .*set data\.allow_outside=True") as raised:
            read(home, image=path)
        assert raised.value.reason == "outside"
        allowed = dataclasses.replace(READER, allow_outside=True)
        if not path.startswith("a/"):
            assert read(home, allowed, image=path).images[0].content == PNG
    os.mkfifo(home / "pipe.png")  # opening it would wait for ever
    with pytest.raises(BadRow, match=r"no such file"):
        read(home, image="pipe.png")


BAD: dict[str, list[dict[str, Any]]] = {
    "question": [{"question": None}, {"question": " "}, {"question": 3}],
    "gold": [{"answer": None}, {"answer": ""}, {"answer": []}, {"answer": float("nan")}],
    "gold_not_verifiable": [
        {"answer": r"\frac{1}{"},
        {"answer": "seven", "answer_type": "numeric"},
        {"answer": "[[1, 2], [3]]", "answer_type": "grounding"},
        {"answer": "C", "answer_type": "multiple_choice", "choices": ["1", "2"]},
    ],
    "answer_type": [{"answer_type": "maths"}],
    "options": [
        {"answer_type": "multiple_choice", "answer": "A", "choices": "A or B"},
        {"answer_type": "numeric", "tolerance": "wide"},
        {"answer_type": "numeric", "tolerance": -1.0},
        {"answer_type": "math", "options": {"tolerance": 1}},
        {"answer_type": "numeric", "options": "[1]"},
        {"answer_type": "numeric", "options": "{"},
    ],
    "image_unreadable": [
        {"image": b"no image"}, {"image": b""}, {"image": 7}, {"image": "none.png"},
        {"image": {"bytes": b"", "path": None}}, {"image": "https://example.com/a.png"}, {"image": "a\0b"},
        {"images": [PNG, None]}, {"image": base64.b64encode(b"no image" * 20).decode()},
    ],
    "video_unreadable": [{"video": "none.mp4"}],
    "placeholders": [
        {"question": "<image> a"}, {"question": "<image><image>", "image": PNG},
        {"question": "<video> a", "image": PNG},
    ],
}  # fmt: skip


@pytest.mark.parametrize(("reason", "columns"), [(reason, one) for reason, given in BAD.items() for one in given])
def test_bad_rows_have_a_reason(tmp_path, reason, columns):
    with pytest.raises(BadRow) as raised:
        read(tmp_path, **columns)
    assert raised.value.reason == reason in REASONS, raised.value
    assert "\n" not in raised.value.detail


@pytest.mark.parametrize(
    ("answer_type", "answer", "columns", "options"),
    [
        ("multiple_choice", "B", {"choices": ["x", "y"]}, {"choices": ["x", "y"]}),
        ("multiple_choice", "B", {"choices": '["x", "y"]', "tolerance": 0.1}, {"choices": ["x", "y"]}),
        ("numeric", "3", {"tolerance": "0.05", "choices": ["x"]}, {"tolerance": 0.05}),
        ("anls", '["a", "b"]', {"options": '{"threshold": 0.7}'}, {"threshold": 0.7}),
        ("list_any", ["a", "b"], {}, {}),
        ("integer", 7, {"tolerance": None}, {}),
        ("free_form", "because of the rain", {}, {}),
    ],
)
def test_options_of_the_scorer(answer_type, answer, columns, options):
    """A column of choices or tolerances has a value for every row: where the type has no use for it, it is left out."""
    question = read(answer=answer, answer_type=answer_type, **columns)
    assert question.options == options and question.answer_type == answer_type
    assert question.answer == (json.dumps(answer) if isinstance(answer, list) else str(answer))


# ---------------------------------------------------------------- in a run


@pytest.fixture
def reading(tmp_path) -> Reading:
    """Forty questions, of which five are bad in different ways."""
    given: list[Any] = [
        ROW | {"id": f"q{n}", "question": f"a {n}", "image": base64.b64encode(PNG).decode()} for n in range(50)
    ]
    cut = base64.b64encode(png(200)[:-40]).decode()
    bad = {
        "q3": {"answer": ""}, "q11": {"image": cut}, "q19": {"question": "a" * 500}, "q27": {"answer_type": "maths"},
        "q35": {"question": "<image> <image>"},
    }  # fmt: skip
    given = [row | bad.get(row["id"], {}) for row in given]
    lines = [*map(json.dumps, given), "no JSON"]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    source = sources.open_sources(config(f"jsonl:{tmp_path / 'data.jsonl'}")).training
    process = PromptProcessing(tiny_model.processor(), tiny_model.TEMPLATE)
    return Reading(source, process, Room(64, 64), "skip")


def steps(reading: Reading, count: int) -> list[Any]:
    settings: dict[str, Any] = {"seed": 0, "questions_per_step": 8, "replay": None, "num_replayed": 0, "num_threads": 2}
    with contextlib.closing(open_stream(reading, **settings)) as stream:
        return [next(stream) for _ in range(count)]


def test_bad_rows_are_skipped_and_counted(reading):
    found = {one.question_id: one.reason for batch in steps(reading, 5) for one in batch.skipped}
    expected = {
        "q3": "gold", "q11": "image_unreadable", "q19": "prompt_too_long", "q27": "answer_type", "q35": "placeholders",
        "row-000050": "row",
    }  # fmt: skip
    assert len(found) > 3 and found.items() <= expected.items()
    for batch in steps(reading, 5):
        assert len(batch.new) + len(batch.skipped) == 8 and batch.num_skipped == len(batch.skipped)
        assert not {item.prompt.question.id for item in batch.new} & expected.keys()


def test_steps_of_which_no_question_can_be_used_are_left_out(reading):
    """They do not end a run that skips, and the state after them continues."""
    with contextlib.closing(open_stream(reading, seed=0, questions_per_step=1, replay=None, num_replayed=0)) as stream:
        found = [next(stream) for _ in range(len(reading.source) - 8)]
        again = stream.get_state()
        expected = next(stream)
        stream.set_state(again)
        assert next(stream).new[0].prompt.uid == expected.new[0].prompt.uid
    assert [one.step for one in found] == list(range(1, len(found) + 1)) and all(len(one.new) == 1 for one in found)
    assert len({skipped.question_id for one in found for skipped in one.skipped}) >= 3
    source = sources.Part(reading.source, [list(reading.source.ids()).index("q3")])
    with contextlib.closing(
        open_stream(dataclasses.replace(reading, source=source), seed=0, questions_per_step=1, replay=None,
                    num_replayed=0)
    ) as stream, pytest.raises(RunError, match=r"no question of the data can be used"):  # fmt: skip
        next(stream)


def test_bad_rows_are_refused_by_name(reading):
    strict = dataclasses.replace(reading, bad_rows="refuse")
    with pytest.raises(
        RunError, match=r"question '.*' \(.*data\.jsonl, row \d+\) cannot be used: .*data\.bad_rows=skip"
    ):
        steps(strict, 6)


def test_a_replayed_question_is_read_again_by_its_id(reading):
    again = reading.by_id(next(reading.source.ids()), "uid", "replay")
    assert isinstance(again, EncodedPrompt) and (again.prompt.uid, again.prompt.kind) == ("uid", "replay")
    bad = next(one for one in ("q3", "q11", "q19") if one in set(reading.source.ids()))
    skipped = reading.by_id(bad, "uid", "replay")
    assert isinstance(skipped, Skipped) and skipped.question_id == bad


def test_a_missing_extra_is_one_line(tmp_path, monkeypatch):
    """Without PyAV a question with a video cannot be read, whatever its row: this is no bad row."""
    monkeypatch.setitem(sys.modules, "av", None)
    row = ROW | {"id": "q", "video": base64.b64encode(b"film" * 40).decode()}
    (tmp_path / "any.json").write_text(json.dumps(row) + "\n")
    source = sources.open_sources(config(f"jsonl:{tmp_path / 'any.json'}", held_out="digits")).training
    process = PromptProcessing(tiny_model.processor(), tiny_model.TEMPLATE)
    with pytest.raises(RunError, match=r"question q has a video: load_video needs PyAV: pip install 'zppo"):
        Reading(source, process, bad_rows="skip").at(0)


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"unit": 3}, {"unit": 3}),
        ('{"unit": 3}', {"unit": 3}),
        ("from the web", {"metadata": "from the web"}),
        ("[1]", {"metadata": "[1]"}),
        ([1, 2], {}),
    ],
)
def test_a_column_metadata_makes_no_row_bad(given, expected):
    """It is an object in our own corpora, and anything in those of others."""
    assert read(metadata=given).metadata == expected


def test_half_surrogate_pairs_reach_no_question(tmp_path):
    """JSON can spell them, but no file, terminal or other process takes them; whole pairs stay."""
    half = {"id": "\ud800", "question": "\udfff \U0001f600", "answer": "\ud800", "answer_type": "string",
            "level": "\ud801", "\udc00": "\udc00", "metadata": '{"a": "\\ud800"}'}  # fmt: skip
    choice = {"question": "Which?", "answer": "A", "answer_type": "multiple_choice", "choices": ["\ud800", "b"]}
    lines = [json.dumps(half).encode(), json.dumps(choice, ensure_ascii=False).encode("utf-8", "surrogatepass")]
    (tmp_path / "data.jsonl").write_bytes(b"\n".join(lines))
    source = sources.open_sources(config(f"jsonl:{tmp_path}", held_out="digits")).training
    found, chosen = source[0], source[1]
    assert (found.id, found.text, found.answer, found.level) == ("?", "? \U0001f600", "?", "?")
    assert found.metadata == {"?": "?", "a": "?"} and chosen.options["choices"] == ["?", "b"]
    broken = {"id": "c", "question": "How many?", "answer": "1", "image": "\ud800.png"}
    (tmp_path / "data.jsonl").write_text(json.dumps(broken))
    with pytest.raises(BadRow, match="no such file"):
        _ = sources.open_sources(config(f"jsonl:{tmp_path}", held_out="digits")).training[0]
