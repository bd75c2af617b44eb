"""Sources of questions: every kind of table gives the same questions; what is held out is not trained on."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from configs import tiny
from zppo_jax.command.heartbeat import Heartbeat
from zppo_jax.config import Config, from_config_dict
from zppo_jax.data import index as index_lib
from zppo_jax.data import records
from zppo_jax.data.digits import DigitsSource
from zppo_jax.data.questions import BadRow
from zppo_jax.data.sources import FORMS, TABLES, open_sources
from zppo_jax.data.tables import RowError
from zppo_jax.data.tables.parquet import ParquetTable
from zppo_jax.errors import ConfigError
from zppo_jax.setup.questions import sources_of


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((32, 32 + value, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def rows(count: int = 40) -> list[dict[str, Any]]:
    return [
        {"id": f"q{n}", "question": f"<image>\nHow many, {n}?", "answer": str(n), "answer_type": "integer",
         "level": "odd" if n % 2 else "even", "image": png(n), "unit": "pieces"}
        for n in range(count)
    ]  # fmt: skip


def config(source: str, **changes: Any) -> Config:
    tree: Any = tiny.get_config()
    tree.data.source, tree.eval.num_questions, tree.data.num_questions = source, 4, 1000
    for name, value in changes.items():
        (tree if name == "seed" else tree.data)[name] = value
    return from_config_dict(tree)


def write_parquet(folder: Path, name: str = "train-0.parquet", given: Any = None, size: int = 7) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(given or rows()), folder / name, row_group_size=size)
    return folder


def write_jsonl(folder: Path) -> Path:
    folder.mkdir()
    for n, row in enumerate(rows()):
        (folder / f"{n}.png").write_bytes(row["image"])
        row["image"] = [f"{n}.png", base64.b64encode(row["image"]).decode(), f"./{n}.png"][n % 3]
        with (folder / f"part-{n // 15}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n\n")
    return folder


def write_records(folder: Path) -> Path:
    folder.mkdir(parents=True)
    stored = [
        records.Record(
            row["id"], row["question"], row["answer"], row["answer_type"], (row["image"],), level=row["level"],
            metadata={"unit": row["unit"]},
        )
        for row in rows()
    ]  # fmt: skip
    parts = [stored[:25], stored[25:]]
    sizes = [records.write_shard(folder / records.shard_name(n, 2), part) for n, part in enumerate(parts)]
    records.write_metadata(folder, sizes)
    return folder


def write_prepared(folder: Path) -> str:
    """A data set that TFDS finds by its name: NAME/VERSION in one of its directories, such as TFDS_DATA_DIR."""
    import tensorflow_datasets as tfds

    write_records(folder / "zppo77k" / "1.0.0")
    tfds.core.add_data_dir(folder)
    return "zppo77k:train"


WRITERS = {
    "parquet": write_parquet,
    "jsonl": write_jsonl,
    "arrayrecord": write_records,
    "tfds": write_prepared,
    "hf": write_parquet,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_table_gives_the_same_questions(tmp_path, kind, monkeypatch):
    """By position, by id, from another process and from many threads; images stay encoded until they are used."""
    if kind == "hf":
        pytest.importorskip("datasets")
    for name in ("XDG_CACHE_HOME", "HF_DATASETS_CACHE", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    place = WRITERS[kind](tmp_path / "data")
    source = open_sources(config(f"{kind}:{place}")).training
    assert "tensorflow" not in sys.modules
    whole = {row["id"]: row for row in rows()}
    assert len(source) == 36 and len(set(source.ids())) == 36 and source.answer_types == {"integer": 40}
    copy = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(copy.__getitem__, [*range(36)] * 3))
    for number, (question_id, question) in enumerate(zip([*source.ids()] * 3, found, strict=True)):
        row = whole[question_id]
        assert (question.id, question.answer, question.level) == (row["id"], row["answer"], row["level"])
        assert question.text == row["question"].removeprefix("<image>\n") and question.answer_type == "integer"
        assert question.metadata == {"unit": "pieces"}
        [picture] = question.images
        assert picture.content == row["image"] and picture.pixels().max() == int(row["answer"])
        assert source.number_of(question_id) == number % 36
    with pytest.raises(KeyError):
        source.number_of("another")


def test_the_share_that_is_held_out_depends_on_ids_alone(tmp_path):
    """Whatever the order of rows or the files they are in; each question is on one side."""
    write_parquet(tmp_path / "a")
    order = np.random.default_rng(0).permutation(40)
    shuffled = [rows()[number] for number in order]
    write_parquet(tmp_path / "b", "x.parquet", shuffled[:9])
    write_parquet(tmp_path / "b", "y.parquet", shuffled[9:])
    parts = [open_sources(config(f"parquet:{tmp_path / name}")) for name in "ab"]
    for one, other in zip(*parts, strict=True):
        assert set(one.ids()) == set(other.ids())
    training, held_out = parts[0]
    assert len(held_out) == 4 and not set(training.ids()) & set(held_out.ids())
    assert len({*training.ids(), *held_out.ids()}) == 40
    other = open_sources(config(f"parquet:{tmp_path / 'a'}", seed=1))
    assert set(other.held_out.ids()) != set(held_out.ids())
    few = open_sources(config(f"parquet:{tmp_path / 'a'}", num_questions=32))
    assert len(few.training) == 32 and set(few.training.ids()) < set(training.ids())


def test_held_out_questions_of_their_own(tmp_path):
    folder = write_parquet(tmp_path / "data")
    write_parquet(folder, "test.parquet", [row | {"id": f"t{n}"} for n, row in enumerate(rows(6))])
    spec = f"parquet:{folder}"
    training, held_out = open_sources(config(spec, held_out=spec))
    assert len(training) == 40 and len(held_out) == 4 and set(held_out.ids()) <= {f"t{n}" for n in range(6)}
    with pytest.raises(ConfigError, match=r"data\.held_out names .*, which data\.source names too: give other files"):
        open_sources(config(spec, held_out=spec, held_out_split="train"))
    digits = open_sources(config("digits", num_questions=50))
    assert digits.training == DigitsSource("rules", "train", 50, 0)
    assert digits.held_out == DigitsSource("rules", "test", 4, 0)
    assert isinstance(open_sources(config(spec, held_out="digits")).held_out, DigitsSource)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("parquet", r"data\.source = 'parquet': there is no such source; give one of digits, parquet:DIR, "),
        ("csv:x", r"there is no such source"),
        ("parquet:{}/none", r"data\.source = .*none': there is no such file or directory"),
        ("parquet:{}/text", r"holds no file that ends in \.parquet"),
        ("parquet:{}/broken", r"x\.parquet is not a parquet file, or damaged"),
        ("jsonl:{}/few", r"has 3 questions, too few to hold some out: name others by data\.held_out"),
        ("jsonl:{}/twice", r"the question id 'a' comes twice: .*1\.jsonl, row 1, and .*2\.jsonl, row 0\. Ids must"),
        ("jsonl:{}/empty", r"has no rows"),
        ("arrayrecord:{}/text", r"is not a data set of TFDS"),
        ("tfds:no_such_name", r"data\.source = 'no_such_name' is not a data set of TFDS"),
        ("hf:{}/none", r"data\.source = 'hf:.*none' (needs datasets|does not load)"),
    ],
)
def test_a_source_that_cannot_be_opened_is_one_line(tmp_path, source, message):
    for name in ("text", "broken", "few", "twice", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "text" / "a.txt").write_text("a")
    (tmp_path / "broken" / "x.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "few" / "a.jsonl").write_text('{"question": "a", "answer": 1}\n' * 3)
    (tmp_path / "twice" / "1.jsonl").write_text('{"id": "b"}\n{"id": "a"}\n')
    (tmp_path / "twice" / "2.jsonl").write_text('{"id": "a"}\n')
    (tmp_path / "empty" / "1.jsonl").write_text("\n \n")
    with pytest.raises(ConfigError, match=message) as raised:
        open_sources(config(source.format(tmp_path)))
    assert "\n" not in str(raised.value)


def test_help_names_every_kind():
    from zppo_jax.config import keys

    [doc] = [key.setting.doc for key in keys() if key.name == "data.source"]
    assert all(form in doc for form in FORMS) and len(FORMS) == len(TABLES) + 1


def test_the_index_is_read_once_and_again_when_the_data_change(tmp_path, monkeypatch):
    built = []
    real = index_lib._built
    monkeypatch.setattr(index_lib, "_built", lambda *arguments: built.append(1) or real(*arguments))
    folder = write_parquet(tmp_path / "data")
    spec = f"parquet:{folder}"
    for _ in range(2):
        training = open_sources(config(spec)).training
    assert len(built) == 1 and [*(folder / ".zppo_jax").iterdir()]
    write_parquet(folder, given=[row | {"id": f"new{n}"} for n, row in enumerate(rows())])
    assert all(one.startswith("new") for one in open_sources(config(spec)).training.ids()) and len(built) == 2
    for file in (folder / ".zppo_jax").iterdir():
        file.write_bytes(file.read_bytes()[:50])  # as after a full disk
    assert set(open_sources(config(spec)).training.ids()) != set(training.ids()) and len(built) == 3
    other = config(spec)
    other = dataclasses.replace(
        other, data=dataclasses.replace(other.data, columns=dataclasses.replace(other.data.columns, id="answer"))
    )
    assert set(open_sources(other).training.ids()) < set(map(str, range(40))), "another column of ids: another index"


def test_without_ids_and_on_a_disk_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_parquet(tmp_path / "data", given=[{k: v for k, v in row.items() if k != "id"} for row in rows()])
    (folder / ".zppo_jax").write_text("a file where the folder of the index would be")
    training = open_sources(config(f"parquet:{folder}")).training
    assert set(training.ids()) < {f"row-{n:06d}" for n in range(40)}
    assert len(list((tmp_path / "cache").rglob("index-*.json"))) == 1


def test_tables_on_another_file_system(tmp_path, monkeypatch):
    """fsspec's file systems are all alike; this one is in memory. Paths of images start from there too."""
    import fsspec

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows()), file)
    system.pipe({"/corpus/a/train.parquet": file.getvalue(), "/corpus/a/test.parquet": b"not read"})
    lines = "".join(json.dumps(row | {"image": f"pictures/{row['id']}.png"}) + "\n" for row in rows())
    system.pipe({"/corpus/b/train.jsonl": lines.encode()})
    system.pipe({f"/corpus/b/pictures/{row['id']}.png": row["image"] for row in rows()})
    system.pipe({"/corpus/secret.png": png(1)})
    for source in ("parquet:memory://corpus/a", "jsonl:memory://corpus/b"):
        training = open_sources(config(source)).training
        assert len(training) == 36 and training[3].images[0].content == rows()[int(training[3].answer)]["image"]
    row = rows()[0] | {"image": "../secret.png"}
    system.pipe({"/corpus/b/train.jsonl": (json.dumps(row) + "\n").encode() + lines.encode().replace(b"q0", b"z")})
    training = open_sources(config("jsonl:memory://corpus/b", held_out="digits")).training
    with pytest.raises(BadRow, match="outside"):
        _ = training[0]
    with pytest.raises(ConfigError, match=r"data\.source = 'memory://corpus/none': there is no such file"):
        open_sources(config("parquet:memory://corpus/none"))
    with pytest.raises(ConfigError, match=r"data\.source = 'nowhere://x' cannot be listed"):
        open_sources(config("parquet:nowhere://x"))


def test_golds_that_nothing_can_score_are_refused_by_number(tmp_path):
    """Those to train on and the held-out ones; a judge or a reward function of one's own can score them."""
    given = [row | {"answer_type": "free_form" if n < 3 else "integer"} for n, row in enumerate(rows())]
    spec = f"parquet:{write_parquet(tmp_path / 'data', given=given)}"
    fault = r"3 of the 40 questions have golds that only a judge can score \(3 free_form\), and there is none"
    for chosen in (config(spec), config("digits", held_out=spec)):
        with pytest.raises(ConfigError, match=fault):
            sources_of(chosen, Heartbeat())
        for section, key, value in (("judge", "endpoint", "teacher"), ("reward", "function", "a:b")):
            changed = dataclasses.replace(getattr(chosen, section), **{key: value})
            assert sources_of(dataclasses.replace(chosen, **{section: changed}), Heartbeat())


def test_values_that_python_cannot_hold_are_bad_rows(tmp_path):
    """As dates in year 3,000,000 are, or texts that are not UTF-8; in ids they are refused at the start."""
    table = pa.Table.from_pylist([{"id": "a", "question": "How many?", "answer": "1"}])
    pq.write_table(table.append_column("day", pa.array([2**30], pa.date32())), tmp_path / "a.parquet")
    found = ParquetTable([str(tmp_path / "a.parquet")])
    with pytest.raises(RowError, match="cannot be read"):
        found.row(0)
    for name, ids in (("b", pa.array([2**30], pa.date32())), ("c", pa.array([b"\xff"]).view(pa.string()))):
        pq.write_table(pa.table({"id": ids}), tmp_path / f"{name}.parquet")
        with pytest.raises(ConfigError, match=f"{name}.parquet is damaged"):
            list(ParquetTable([str(tmp_path / f"{name}.parquet")]).columns(("id",)))


def test_two_columns_of_one_name_are_refused(tmp_path):
    column = pa.array(["a"])
    pq.write_table(pa.Table.from_arrays([column, column], names=["id", "id"]), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"a\.parquet has more than one column 'id'"):
        ParquetTable([str(tmp_path / "a.parquet")])


_HOSTILE_DISK = """
import os, resource, sys
from zppo_jax.data.tables import RowError
from zppo_jax.data.tables.parquet import ParquetTable
files = [f"{sys.argv[1]}/{n}.parquet" for n in range(100)]
table = ParquetTable(files)
resource.setrlimit(resource.RLIMIT_NOFILE, (90, 90))
assert [one for one, in table.columns(("id",))] == [table.row(n)["id"] for n in range(100)] == list(range(100))
os.truncate(files[99], 100)
try:
    ParquetTable.row(table, 50), table._kept.clear(), table.row(99)
except RowError:
    print("refused")
"""


def test_more_files_than_may_be_open_and_one_that_is_cut_off_meanwhile(tmp_path):
    """The second would kill the process (SIGBUS) if the file were mapped."""
    for n in range(100):
        pq.write_table(pa.table({"id": [n], "image": [bytes(9000)]}), tmp_path / f"{n}.parquet", compression="none")
    done = subprocess.run(
        [sys.executable, "-c", _HOSTILE_DISK, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr


@pytest.mark.parametrize("damage", ["", "[]", {"ids": 5}, {"ids": ["q1"] * 40}, {"types": [["math"]] * 40}])
def test_a_damaged_index_is_built_again(tmp_path, damage):
    config_of_data = config(f"parquet:{write_parquet(tmp_path)}")
    before = open_sources(config_of_data).training
    (kept,) = tmp_path.rglob("index-*.json")
    kept.write_text(damage if isinstance(damage, str) else json.dumps(json.loads(kept.read_text()) | damage))
    after = open_sources(config_of_data).training
    assert [*after.ids()] == [*before.ids()] and after.answer_types == before.answer_types


def test_no_file_is_both_trained_on_and_held_out(tmp_path):
    """Also not as a part of the folder, under another path or through a link."""
    data = write_parquet(tmp_path / "data", "a.parquet", rows(30))
    write_parquet(data, "b.parquet", [row | {"id": f"other-{row['id']}"} for row in rows(30)])
    (tmp_path / "link").symlink_to(data)
    for held_out in ("data/b.parquet", "link/b.parquet", "data/../data/a.parquet"):
        with pytest.raises(ConfigError, match=r"data\.held_out names /.*\.parquet, which data\.source names too"):
            open_sources(config(f"parquet:{data}", held_out=f"parquet:{tmp_path / held_out}"))
    apart = open_sources(config(f"parquet:{data}/a.parquet", held_out=f"parquet:{data}/b.parquet"))
    assert not set(apart.training.ids()) & set(apart.held_out.ids())


def test_folders_with_odd_names(tmp_path):
    folder = write_parquet(tmp_path / "a::b c[1]*#?%20ü", "x y.parquet", rows(30))
    assert len(open_sources(config(f"parquet:{folder}")).training) == 27


def test_a_mistyped_column_is_named(tmp_path):
    """A column that is not there would mean ids by row number, or no images: nothing would say so."""
    chosen = config(f"parquet:{write_parquet(tmp_path / 'data')}")
    for name in ("id", "images", "answer_type"):
        columns = dataclasses.replace(chosen.data.columns, **{name: "imgae"})
        fault = rf"data\.columns\.{name} = 'imgae': the rows of data\.source = 'parquet:.* have no such column; .* id,"
        with pytest.raises(ConfigError, match=fault):
            open_sources(dataclasses.replace(chosen, data=dataclasses.replace(chosen.data, columns=columns)))
