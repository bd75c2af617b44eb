"""Rows as upstream writes them: prompts in three shapes, media in five, videos, other file systems."""

from __future__ import annotations

import base64
import io

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data import miniature
from zppo_jax.data.records import RecordFolder
from zppo_jax.data.zppo77k import keys, mmfinereason, vero
from zppo_jax.data.zppo77k.upstream import media
from zppo_jax.errors import RunError
from zppo_jax.processor import load_image

ASKED = "<image>\nFind x."
PARTS = [{"type": "image", "text": None}, {"type": "text", "text": "Find x."}]


@pytest.mark.parametrize(
    "prompt",
    [
        [{"role": "system", "content": "Think."}, {"role": "user", "content": ASKED}],
        {"role": ["system", "user"], "content": ["Think.", ASKED]},
        {"role": "user", "content": ASKED},
        ASKED,
        [{"role": "system", "content": [{"type": "text", "text": "Think."}]}, {"role": "user", "content": PARTS}],
    ],
)
def test_the_user_turn_is_found_in_every_shape(prompt):
    assert vero.user_turn(prompt) == ASKED
    row = vero.row({"prompt": prompt, "reward_model": {"ground_truth": "12"}}, "stem-mmk12")
    assert (row.question, row.gold, row.id, row.reward_type) == (ASKED, "12", "", "")


def test_a_row_without_a_prompt_asks_nothing():
    assert [vero.user_turn(prompt) for prompt in (None, [], [{"role": "system", "content": "x"}], 5)] == [""] * 4
    row = vero.row({"extra_info": {"question": "Q", "answer": "7", "id": "e"}, "id": None}, "c")
    assert (row.question, row.gold, row.id) == ("Q", "7", "e")


def test_numbers_may_be_texts_and_golds_lists():
    cells = {"extra_info": {"question": "Q", "tolerance": "0.05"}, "reward_model": {"ground_truth": ["a", "b"]}}
    assert (vero.row(cells, "c").tolerance, vero.row(cells, "c").gold) == (0.05, "['a', 'b']")
    assert [mmfinereason.rate(one) for one in ("0.5", 1, None, "x", float("nan"), 1.5)] == [0.5, 1.0] + [None] * 4


def test_cells_of_other_types_end_no_build(build, tmp_path):
    """A question that is no text is none, and is dropped; what JSON cannot hold is no metadata; a half surrogate pair,
    which the literal of a list can spell, is replaced."""
    rows = [miniature.vero_row(miniature.VERO[number], number) for number in range(4)]
    for row in rows:
        row["ability"] = [b"x"]
    rows[0]["extra_info"] |= {"reward_type": "list_string_match"}
    rows[0]["reward_model"] = {"style": "rule", "ground_truth": "['\\ud800', 'b']"}
    for number, row in enumerate(rows):
        schema = miniature.VERO_SCHEMA.set(4, pa.field("ability", pa.list_(pa.binary())))
        if number > 1:
            row["extra_info"]["question"] = [1, 2] if number == 2 else None
            row["prompt"] = "  <image> " if number == 2 else "What is it?"
            extra = pa.struct({field.name: field.type for field in schema.field("extra_info").type} | {
                "question": pa.list_(pa.int64())})  # fmt: skip
            schema = schema.set(6, pa.field("extra_info", extra)).set(2, pa.field("prompt", pa.string()))
        table = pa.Table.from_pylist([row], schema=schema)
        miniature.write_table(tmp_path / "in" / "stem-tqa" / f"train-{number:05d}.parquet", table, 5)
    entry = build(tmp_path / "out", vero=str(tmp_path / "in"), mmfinereason="")["sub_datasets"]["tqa"]
    assert (entry["read"], entry["kept"], entry["dropped"]["gold_empty"]) == (4, 3, 1)
    records = {record.question: record for record in RecordFolder(tmp_path / "out")}
    assert "What is it?" in records and '["?","b"]' in [record.answer for record in records.values()]
    assert not any("ability" in record.metadata for record in records.values())


def test_media_in_every_shape():
    text = base64.b64encode(b"abc").decode()
    for value in ({"bytes": b"abc", "path": "x"}, b"abc", [{"bytes": b"abc"}], text, f"data:image/png;base64,{text}"):
        assert media(value) == [b"abc"]
    assert media(None) == [] and media([]) == []
    assert media([{"bytes": None, "path": "x.png"}, "§", b"abc"]) == [None, None, b"abc"]


def test_equal_questions_have_equal_keys():
    one = keys.row_key("What is 1.5 + x?", [b"image"])
    assert one == keys.row_key("what  is １.5 + X", [b"image"])
    others = [keys.row_key(text, [b"image"]) for text in ("What is 15 + x?", "What is 1.5 - x?", "What is 1.5 + y?")]
    assert len({one, *others, keys.row_key("What is 1.5 + x?", [b"other"])}) == 5
    stem, whole = (set(keys.question_keys(text)) for text in ("Which?", "Which? A) x B) y"))
    assert stem < whole and keys.question_keys(" ?") == []


def test_the_key_of_an_image_is_that_of_its_pixels():
    file = miniature.picture(4, 0)
    pixels = load_image(file)
    again = io.BytesIO()
    Image.fromarray(pixels).save(again, "BMP")
    assert keys.image_key(load_image(again.getvalue())) == keys.image_key(pixels)
    assert keys.image_key(pixels.reshape(128, 112, 3)) != keys.image_key(pixels)


def film() -> bytes:
    av = pytest.importorskip("av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=4)
        stream.width, stream.height = 128, 112
        for number in range(8):
            pixels = np.full((112, 128, 3), 30 * number, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()


def test_texts_several_images_and_videos_can_be_kept(build, tmp_path):
    content = film()
    corpora = miniature.write(tmp_path / "in", content)
    sources = {"vero": str(corpora.vero), "mmfinereason": str(corpora.mmfinereason)}
    manifest = build(tmp_path / "default", **sources)
    assert {name: entry["dropped"] for name, entry in manifest["sub_datasets"].items()} == {
        name: entry["dropped"] for name, entry in corpora.expected.items()
    }
    build(tmp_path / "all", **sources, min_images=0, max_images=2)
    records = {record.question: record for record in RecordFolder(tmp_path / "all")}
    assert records["Which digit comes first?"].videos == (content,)
    assert len(records["Two pictures: how many digits in both?"].images) == 2
    assert records["How much is two and three?"].images == ()
    damaged = miniature.write(tmp_path / "damaged", content[: len(content) // 3])
    sources = {"vero": "", "mmfinereason": str(damaged.mmfinereason)}
    manifest = build(tmp_path / "out", **sources, min_images=0, max_images=2)
    assert manifest["sub_datasets"]["bmmr"]["dropped"]["image_unreadable"] == 1


@pytest.fixture
def remote(corpora):
    """The corpora in a file system that is not this machine's."""
    fs = fsspec.filesystem("memory")
    for folder in (corpora.vero, corpora.mmfinereason):
        fs.put(str(folder), f"/{folder.name}", recursive=True)
    yield fs
    fs.rm("/", recursive=True)


def test_a_url_is_read_through_fsspec(build, corpora, remote, tmp_path):
    there = build(tmp_path / "there", vero="memory://vero", mmfinereason="memory://mmfinereason")
    here = build(tmp_path / "here")
    assert there == here
    remote.pipe("/mmfinereason/data/train-00001-of-00002.parquet", b"PAR1 no more")
    with pytest.raises(RunError, match=r"memory://.*train-00001-of-00002.parquet.*download it again"):
        build(tmp_path / "damaged", vero="memory://vero", mmfinereason="memory://mmfinereason")


def test_a_row_group_is_read_in_small_pieces(build, corpora, tmp_path):
    """The same rows in one row group of everything give the same questions."""
    for path in [*corpora.vero.rglob("*.parquet"), *corpora.mmfinereason.rglob("*.parquet")]:
        target = tmp_path / "in" / path.relative_to(corpora.vero.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pq.read_table(path), target, row_group_size=1_000_000)
    sources = {"vero": str(tmp_path / "in" / "vero"), "mmfinereason": str(tmp_path / "in" / "mmfinereason")}
    build(tmp_path / "out", **sources)
    build(tmp_path / "small")
    assert list(RecordFolder(tmp_path / "out")) == list(RecordFolder(tmp_path / "small"))
