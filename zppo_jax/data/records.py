"""The record format of a built corpus: one question an ArrayRecord record, in the layout of TensorFlow Datasets.

A record is a tf.train.Example of the features in `features`. Images and videos are the bytes of the original files:
nothing is decoded or compressed again, and a reader decodes what it uses. A folder is a TFDS dataset
(`write_metadata`), so `tfds.builder_from_directory(DIR).as_data_source("train")` reads it, and no builder class is
needed. Neither writing nor reading imports TensorFlow. TFDS itself is imported on first use: that takes a second.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

DATASET = "zppo77k"
SPLIT = "train"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_DESCRIPTION = "Questions with images, short gold answers and the scorer's options, built by zppo_jax.data.zppo77k."

TEXTS = ("id", "question", "answer", "answer_type", "options", "level", "metadata")
"""The fields that are texts; `options` and `metadata` are JSON objects."""


@dataclasses.dataclass(frozen=True)
class Record:
    """A question as it is stored.

    `question` holds no placeholder and no closer. `images` and `videos` are files' contents in the order of the prompt.
    `answer` is the gold; of a type with several golds a JSON list. `options` are the scorer's (`rewards.score`).
    `level` is the canonical name of the sub-dataset, `metadata` says where the question comes from.
    """

    id: str
    question: str
    answer: str
    answer_type: str
    images: tuple[bytes, ...] = ()
    videos: tuple[bytes, ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    level: str = ""
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def columns(self) -> dict[str, Any]:
        """The fields as they are stored: options and metadata as JSON, media as lists of bytes."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        written = {name: canonical_json(fields[name]) for name in ("options", "metadata")}
        return fields | written | {"images": list(self.images), "videos": list(self.videos)}


def canonical_json(value: Any) -> str:
    """JSON that depends on the content alone: sorted keys, no spaces, every character as it is."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


@functools.cache
def features() -> Any:
    """The `tfds.features.FeaturesDict` of a record."""
    import tensorflow_datasets as tfds

    text = tfds.features.Text
    media = {
        "images": tfds.features.Sequence(tfds.features.Image(shape=(None, None, 3))),
        "videos": tfds.features.Sequence(text()),  # the bytes of files: TFDS's Text keeps bytes as they are
    }
    return tfds.features.FeaturesDict({name: text() for name in TEXTS} | media)


@functools.cache
def _serializer() -> Any:
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    return ExampleSerializer(features().get_serialized_info())


@functools.cache
def _parser() -> Any:
    from tensorflow_datasets.core.example_parser import ExampleParserNp

    return ExampleParserNp(features().get_serialized_info())


def encode(record: Record) -> bytes:
    """The bytes of a record: a serialised tf.train.Example, equal for equal records in every process."""
    example = _serializer().get_tf_example(features().encode_example(record.columns()))
    # `serialize_example` leaves the order of the features to protobuf, and it differs from process to process.
    return example.SerializeToString(deterministic=True)


def decode(content: bytes) -> Record:
    """Reads the bytes that `encode` wrote. Raises ValueError for anything else."""
    try:
        parsed = _parser().parse_example(content)
        fields: dict[str, Any] = {name: _bytes(parsed[name]).decode() for name in TEXTS}
        fields |= {name: json.loads(fields[name]) for name in ("options", "metadata")}
        fields |= {name: tuple(_bytes(one) for one in parsed[name]) for name in ("images", "videos")}
    except Exception as error:  # protobuf, TFDS and json raise many kinds
        raise ValueError(f"not a record of this format ({' '.join(str(error).split())[:200]}); build again") from error
    return Record(**fields)


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else bytes(value.item())


def shard_name(number: int, count: int) -> str:
    """The file name of shard `number` (from 0) of `count`, as TFDS has it."""
    return f"{DATASET}-{SPLIT}.array_record-{number:05d}-of-{count:05d}"


def write_shard(path: str | os.PathLike[str], records: Iterable[Record]) -> tuple[int, int]:
    """Writes an ArrayRecord file for random access, record by record; returns (number of records, their bytes).

    `group_size:1`: a read decompresses one record and no neighbours. The same records give the same file.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    count = num_bytes = 0
    writer = ArrayRecordWriter(os.fspath(path), "group_size:1")
    try:
        for record in records:
            content = encode(record)
            writer.write(content)
            count, num_bytes = count + 1, num_bytes + len(content)
    finally:
        writer.close()
    return count, num_bytes


def write_metadata(directory: str | os.PathLike[str], shards: Sequence[tuple[int, int]]) -> None:
    """Writes TFDS's features.json and dataset_info.json; `shards` has (number of records, bytes) of each, in order."""
    import tensorflow_datasets as tfds
    from etils import epath

    template = tfds.core.ShardedFileTemplate(
        data_dir=epath.Path(directory), template=_TEMPLATE, dataset_name=DATASET, split=SPLIT,
        filetype_suffix="array_record",
    )  # fmt: skip
    split = tfds.core.SplitInfo(
        name=SPLIT, shard_lengths=[count for count, _ in shards], num_bytes=sum(size for _, size in shards),
        filename_template=template,
    )  # fmt: skip
    tfds.folder_dataset.write_metadata(
        data_dir=os.fspath(directory), features=features(), split_infos=[split], version="1.0.0",
        filename_template=_TEMPLATE, check_data=False, description=_DESCRIPTION,
    )  # fmt: skip


class RecordFolder(Sequence[Record]):
    """The records of a built folder, each read on access. Picklable, and safe to read from many threads.

    Shards are read in the order of their names. Raises ValueError for a folder without shards, or with shards missing.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.directory = Path(directory)
        self._source = ArrayRecordDataSource([str(path) for path in shard_paths(self.directory)])

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        number = place + len(self) if place < 0 else place
        if not 0 <= number < len(self):
            raise IndexError(f"{self.directory} has {len(self)} records, and no number {place}")
        try:
            return decode(self._source[number])
        except ValueError as error:
            raise ValueError(f"{self.directory}, record {number}: {error}") from error

    def __repr__(self) -> str:
        return f"RecordFolder({str(self.directory)!r})"


def shard_paths(directory: Path) -> list[Path]:
    """The ArrayRecord files of a folder in order. Raises ValueError if there are none, or not all of them."""
    paths = sorted(directory.glob("*.array_record-?????-of-?????"))
    if not paths:
        raise ValueError(f"{directory} holds no ArrayRecord shards (NAME.array_record-00000-of-00001): give the --out")
    count = int(paths[0].name[-5:])
    if [int(path.name[-14:-9]) for path in paths] != list(range(count)):
        raise ValueError(f"{directory} holds {len(paths)} shards of {count}: the build is not complete, or files left")
    return paths
