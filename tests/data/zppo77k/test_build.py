"""A build of the miniature corpora: every count, every field, every setting."""

from __future__ import annotations

import collections
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data import miniature
from tests.data.zppo77k.conftest import files_of
from zppo_jax.data.records import RecordFolder
from zppo_jax.data.zppo77k import recipe
from zppo_jax.data.zppo77k.filters import REASONS
from zppo_jax.errors import ConfigError, RunError
from zppo_jax.rewards import score

tfds = pytest.importorskip("tensorflow_datasets")


@pytest.fixture(scope="module")
def built(build, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "out"
    return out, build(out)


def dropped(manifest, name):
    return manifest["sub_datasets"][name]["dropped"]


def test_every_count_is_as_the_rows_say(built, corpora):
    _, manifest = built
    counted = {
        name: {key: entry[key] for key in ("read", "kept", "dropped")}
        for name, entry in manifest["sub_datasets"].items()
    }
    assert counted == corpora.expected
    reasons = {reason for entry in counted.values() for reason in entry["dropped"]}
    assert reasons == {reason.value for reason in REASONS} - {"decontaminated", "over_cap"}, "each kind of row is there"
    for entry in manifest["sub_datasets"].values():
        assert entry["read"] == entry["kept"] + sum(entry["dropped"].values())
    assert manifest["num_questions"] == sum(entry["kept"] for entry in counted.values())
    assert manifest["recipe"]["not_in_recipe"] == {"GameQA-140K": 1, "WaltonColdStart": 1}


def test_dataset_json_has_the_fields_that_are_promised(built):
    out, manifest = built
    assert json.loads((out / "dataset.json").read_text()) == manifest
    fields = {"schema_version", "num_questions", "seed", "recipe", "inputs", "sub_datasets"}
    assert set(manifest) == fields
    assert manifest["sub_datasets"]["tqa"]["tier"] == 1 and manifest["sub_datasets"]["vqav2"]["tier"] == 2
    assert "vero/stem-tqa/train-00000-of-00002.parquet" in manifest["inputs"]
    assert not any("/val-" in name for name in manifest["inputs"])
    assert all(len(digest) == 64 for digest in manifest["inputs"].values())
    assert sorted(path.name for path in out.iterdir() if path.suffix != ".json") == [
        "zppo77k-train.array_record-00000-of-00001"
    ], "the workspace is gone"


def test_the_questions_are_what_upstream_says(built):
    records = {(record.level, record.question): record for record in RecordFolder(built[0])}
    assert len(records) == built[1]["num_questions"]
    choice = records["tqa", "Which animal is number 1?\nA) a cat B) a dog C) a cow D) a hen"]
    assert (choice.answer, choice.answer_type) == ("B", "multiple_choice")
    assert choice.options == {"choices": ["a cat", "a dog", "a cow", "a hen"]}
    assert choice.images == (miniature.picture(1001, 0),), "the file's bytes are not changed"
    assert choice.metadata["upstream_id"] == "stem_1" and choice.metadata["corpus"] == "vero"
    number = records["geomverse", "How long is side 2?"]
    assert (number.answer, number.answer_type, number.options) == ("2.5", "numeric", {"tolerance": 0.01})
    several = records["vqav2", "What colour is the bus?"]
    assert (json.loads(several.answer), several.answer_type) == (["red", "dark red"], "list_any")
    assert records["bmmr", "Which one?\nA) a cat B) a dog C) a cow D) a hen"].answer == "B", "the directive is gone"
    assert records["mmr1", "What is in the tags?"].answer == "7"
    assert records["mmr1", "What is 1 more than the number shown?"].metadata["pass_rate"] == 0.25
    kinds = collections.Counter(record.answer_type for record in records.values())
    assert set(kinds) == {"multiple_choice", "numeric", "list_any", "counting", "string", "math"}


def test_every_gold_verifies_against_itself(built):
    for record in RecordFolder(built[0]):
        golds = json.loads(record.answer) if record.answer_type == "list_any" else [record.answer]
        for gold in golds:
            answer = rf"\boxed{{{gold}}}"
            assert score(answer, record.answer, record.answer_type, "anywhere", **record.options).correct, record.id


def test_tfds_reads_the_build(built):
    source = tfds.builder_from_directory(built[0]).as_data_source("train")
    assert len(source) == built[1]["num_questions"]
    assert source[0]["images"][0].shape == (112, 128, 3)


def test_parquet_has_the_same_questions(built, build, tmp_path):
    build(tmp_path / "out", kind="parquet")
    file = pq.ParquetFile(tmp_path / "out" / "train-00000-of-00001.parquet")
    assert max(file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)) <= 32
    rows = file.read().to_pylist()
    for row, record in zip(rows, RecordFolder(built[0]), strict=True):
        assert [image["bytes"] for image in row.pop("images")] == list(record.images)
        assert row.pop("videos") == []
        columns = record.columns()
        assert row == {name: columns[name] for name in row}


@pytest.mark.parametrize(
    ("settings", "name", "counts"),
    [
        ({"cap_tier1": 3}, "tqa", {"over_cap": 5}),
        ({"cap_tier1": 1}, "wemath", {"over_cap": 1, "other_source_wins": 1}),
        ({"cap_tier1": 1, "cap_per": "upstream"}, "wemath", {"other_source_wins": 1}),
        ({"vero_wins": "rows"}, "wemath", {}),
        ({"vero_wins": "rows"}, "tqa", {"pass_rate": 1, "other_source_wins": 1, "duplicate": 2}),
        ({"max_pass_rate": 0.75}, "mmr1", {"pass_rate": 1}),
        ({"missing_pass_rate": "keep"}, "mmr1", {"pass_rate": 2}),
        ({"multi_answer": "drop"}, "vqav2", {"answer_type": 2, "answer_too_long": 1}),
        ({"free_form": "keep"}, "mmr1", {"pass_rate": 2}),
        ({"recover_golds": True}, "mmr1", {"gold_empty": 1}),
        ({"min_images": 0, "max_images": 2}, "bmmr", {"image_too_small": 1}),
        ({"max_prompt_tokens": 100}, "pathvqa", {"prompt_too_long": 1}),
        ({"min_side": 113}, "tallyqa", {"image_too_small": 1}),
        ({"max_answer_chars": 1}, "pathvqa", {"answer_too_long": 1}),
        ({"split": "val"}, "tqa", {"other_source_wins": 5}),
    ],
)
def test_settings(build, tmp_path, settings, name, counts):
    manifest = build(tmp_path / "out", **settings)
    found = dropped(manifest, name)
    assert {reason: found.get(reason) for reason in counts} == counts
    assert found.keys() == counts.keys() or name in ("tqa", "mmr1")
    assert sum(found.values()) + manifest["sub_datasets"][name]["kept"] == manifest["sub_datasets"][name]["read"]
    if settings.get("split") == "val":
        assert {record.question for record in RecordFolder(tmp_path / "out") if record.level == "tqa"} == {"Of val?"}


def test_the_sample_depends_on_the_seed_and_on_nothing_else(build, tmp_path):
    samples = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        build(tmp_path / name, cap_tier1=3, seed=seed)
        samples[name] = {record.id for record in RecordFolder(tmp_path / name)}
    assert samples["a"] == samples["b"] != samples["c"]


def test_more_sub_datasets_can_be_included_and_others_left_out(build, tmp_path):
    manifest = build(tmp_path / "out", include=("walton",))
    assert manifest["sub_datasets"]["walton"] == {"tier": 0, "read": 1, "dropped": {}, "kept": 1}
    with pytest.raises(ConfigError, match="'waltn' is not a sub-dataset"):
        recipe.chosen(["waltn"])
    assert all(row.name != "tqa" for row in recipe.chosen((), ["tqa"]))


def test_the_table_is_the_papers():
    rows = recipe.chosen()
    names = {corpus: {row.name for row in rows if row.corpus == corpus} for corpus in ("vero", "mmfinereason")}
    assert (len(names["vero"]), len(names["mmfinereason"])) == (29, 17)
    shared = {"ai2d", "geo170k", "tqa", "visualwebinstruct", "raven", "wemath"}
    assert names["vero"] & names["mmfinereason"] == shared
    assert collections.Counter(recipe.tiers(rows).values()) == {1: 21, 2: 19}
    assert "at most 85,400 questions" in recipe.listing(rows, recipe.Settings())


@pytest.mark.parametrize("written", ["0.25", 0.25])
def test_the_pass_rate_has_two_names_and_two_types(build, tmp_path, written):
    rows = [miniature.mmfinereason_row(row, n) for n, row in enumerate(miniature.MMFINEREASON[:3])]
    table = miniature.mmfinereason_table(rows, pass_rate="qwen3vl_4b_pass_rate")
    place = table.schema.get_field_index("qwen3vl_4b_pass_rate")
    rates = pa.array([written, None, "many" if isinstance(written, str) else 0.75])
    miniature.write_table(
        tmp_path / "in" / "train-0.parquet", table.set_column(place, "qwen3vl_4b_pass_rate", rates), 2
    )
    manifest = build(tmp_path / "out", vero="", mmfinereason=str(tmp_path / "in"))
    entry = manifest["sub_datasets"]["mmr1"]
    expected = {"pass_rate_missing": 2} if isinstance(written, str) else {"pass_rate_missing": 1, "pass_rate": 1}
    assert (entry["kept"], entry["dropped"]) == (1, expected)


def test_without_vero_mmfinereason_wins_its_names(build, tmp_path):
    manifest = build(tmp_path / "out", vero="")
    assert manifest["sub_datasets"]["tqa"] == {"tier": 1, "read": 5, "dropped": {"pass_rate": 1}, "kept": 4}


@pytest.fixture
def evaluation_data(tmp_path):
    table = pa.table({
        "question": ["WHICH animal is number 1", "Something else?"],
        "image": [{"bytes": miniature.picture(1102, 0), "path": "x.png"}, None],
    })  # fmt: skip
    miniature.write_table(tmp_path / "evaluation" / "test.parquet", table, 1)
    (tmp_path / "evaluation" / "one.png").write_bytes(miniature.picture(1104, 0))
    return str(tmp_path / "evaluation")


@pytest.mark.parametrize(
    ("by", "tqa", "geomverse"), [("either", 1, 2), ("question", 1, 0), ("image", 0, 2), ("both", 0, 0)]
)
def test_what_shares_an_image_or_a_question_is_taken_out(build, tmp_path, evaluation_data, by, tqa, geomverse):
    manifest = build(tmp_path / "out", decontaminate=(evaluation_data,), decontaminate_by=by)
    assert dropped(manifest, "tqa").get("decontaminated", 0) == tqa
    assert dropped(manifest, "geomverse").get("decontaminated", 0) == geomverse


def test_a_damaged_file_is_one_line_and_what_is_finished_is_kept(build, tmp_path, corpora):
    copy = miniature.write(tmp_path / "in")
    victim = copy.vero / "stem-tqa" / "train-00001-of-00002.parquet"
    whole = victim.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:400] + b"\xff" * 300 + whole[700:], b""):
        victim.write_bytes(damaged)
        with pytest.raises(RunError, match=r"train-00001-of-00002.parquet.*download it again") as caught:
            build(tmp_path / "out", vero=str(copy.vero), mmfinereason=str(copy.mmfinereason))
        assert "\n" not in str(caught.value)
    victim.write_bytes(whole)
    build(tmp_path / "out", vero=str(copy.vero), mmfinereason=str(copy.mmfinereason))
    build(tmp_path / "fresh")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vero": "/nowhere/at/all"}, "there is no folder '/nowhere/at/all'"),
        ({"vero": "", "mmfinereason": ""}, "reads nothing"),
        ({"mmfinereason": "TMP"}, "holds no parquet files"),
        ({"vero": "TMP"}, "no folder of the recipe"),
        ({"decontaminate": ("TMP",)}, "no parquet and no image files"),
    ],
)
def test_wrong_inputs_are_refused(build, tmp_path, change, words):
    (tmp_path / "empty").mkdir()
    put = {"TMP": str(tmp_path / "empty")}
    change = {
        name: tuple(put[one] for one in value) if isinstance(value, tuple) else put.get(value, value)
        for name, value in change.items()
    }
    with pytest.raises(ConfigError, match=words):
        build(tmp_path / "out", **change)


@pytest.mark.parametrize(("corpus", "column"), [("vero", "extra_info"), ("mmfinereason", "source")])
def test_another_schema_is_refused(build, tmp_path, corpus, column):
    copy = miniature.write(tmp_path / "in")
    path = next(getattr(copy, corpus).rglob("train-00000*.parquet"))
    table = pq.read_table(path)
    pq.write_table(table.drop_columns([column, "prompt"] if corpus == "vero" else [column]), path)
    with pytest.raises(RunError, match=column):
        build(tmp_path / "out", vero=str(copy.vero), mmfinereason=str(copy.mmfinereason))


def test_a_complete_build_is_not_overwritten(build, tmp_path):
    build(tmp_path / "out")
    before = files_of(tmp_path / "out")
    build(tmp_path / "out")
    assert files_of(tmp_path / "out") == before
    for change in ({"seed": 1}, {"kind": "parquet"}, {"vero": ""}):
        with pytest.raises(ConfigError, match="other settings or inputs"):
            build(tmp_path / "out", **change)
    assert files_of(tmp_path / "out") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match="is not a build"):
        build(tmp_path / "mine")
