"""The record format: what is written is read again, by us and by TFDS, byte for byte."""

import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from zppo_jax.data import records

tfds = pytest.importorskip("tensorflow_datasets")


def image_file(kind: str = "JPEG", size: tuple[int, int] = (130, 110)) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


RECORDS = (
    records.Record("a/1", "Was ist ½ von 4?\n", "2", "numeric", options={"tolerance": 0.01}, level="tqa"),
    records.Record("a/2", "Which?", "B", "multiple_choice", (image_file(),), options={"choices": ["x", "y"]}),
    records.Record("b/1", "两", '["a", "b"]', "list_any", (image_file("PNG"), image_file()), (b"\x00\xff\n",)),
    records.Record("b/2", "", "", "math", metadata={"source": {"file": "x", "row": 3}, "rate": 0.25, "none": None}),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("records")
    parts = (RECORDS[:3], RECORDS[3:])
    written = [records.write_shard(directory / records.shard_name(n, 2), part) for n, part in enumerate(parts)]
    assert [count for count, _ in written] == [3, 1]
    records.write_metadata(directory, written)
    return directory


def test_records_come_back_as_they_were(folder):
    read = records.RecordFolder(folder)
    assert tuple(read) == RECORDS
    assert read[-1] == RECORDS[3] and read[1:3] == list(RECORDS[1:3])
    assert pickle.loads(pickle.dumps(read))[2] == RECORDS[2]
    with pytest.raises(IndexError, match="4 records, and no number 4"):
        read[4]


def test_tfds_reads_the_folder(folder):
    source = tfds.builder_from_directory(folder).as_data_source("train")
    assert len(source) == 4
    assert source[2]["id"] == b"b/1"
    assert [image.shape for image in source[2]["images"]] == [(110, 130, 3)] * 2
    assert source[2]["videos"] == [b"\x00\xff\n"]


OTHER_PROCESS = """
import sys
from zppo_jax.data import records
record = records.RecordFolder(sys.argv[1])[2]
assert "tensorflow" not in sys.modules
print(records.encode(record).hex())
"""


def test_another_process_reads_and_writes_the_same_bytes_without_tensorflow(folder):
    made = [sys.executable, "-c", OTHER_PROCESS, str(folder)]
    ended = subprocess.run(made, check=True, capture_output=True, text=True)
    assert bytes.fromhex(ended.stdout) == records.encode(RECORDS[2]), "protobuf orders a map anew in each process"


def test_equal_records_give_equal_files(tmp_path):
    for name in "ab":
        records.write_shard(tmp_path / name, RECORDS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    shuffled = records.Record("x", "", "", "math", metadata={"b": 1, "a": 2})
    assert records.encode(shuffled) == records.encode(records.Record("x", "", "", "math", metadata={"a": 2, "b": 1}))


def test_what_is_no_record_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a record"):
        records.decode(b"\x01\x02 no record")
    with pytest.raises(ValueError, match="no ArrayRecord shards"):
        records.RecordFolder(tmp_path)
    records.write_shard(tmp_path / records.shard_name(1, 2), RECORDS)
    with pytest.raises(ValueError, match="1 shards of 2"):
        records.RecordFolder(tmp_path)
