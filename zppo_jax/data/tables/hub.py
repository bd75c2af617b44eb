"""Rows of TFDS data sets (ArrayRecord, the format that this package writes) and of Hugging Face's `datasets`."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zppo_jax.data.tables.table import Row, RowError
from zppo_jax.errors import ConfigError


class RecordTable:
    """The rows of a split of a TFDS data set, without TensorFlow. Images stay encoded.

    `place` is a directory that holds a data set of TFDS (features.json, dataset_info.json and ArrayRecord files), or
    the name of a registered builder, which must have been prepared as ArrayRecord. Raises ConfigError.
    """

    files = ()

    def __init__(self, place: str, split: str, key: str):
        self._place, self._split, self._key = place, split, key
        self._size = len(self._source)

    @functools.cached_property
    def _builder(self) -> Any:
        import tensorflow_datasets as tfds  # takes a second or more, which other sources are spared

        try:
            if "/" in self._place or os.path.isdir(self._place):
                return tfds.builder_from_directory(self._place)
            return tfds.builder(self._place)
        except Exception as error:  # TFDS raises many kinds
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"{self._key} = {self._place!r} is not a data set of TFDS ({reason})") from error

    @functools.cached_property
    def _source(self) -> Any:
        import tensorflow_datasets as tfds

        class Encoded(tfds.decode.SkipDecoding):
            """TFDS's own does not know lists of images."""

            def decode_batch_example_np(self, serialized_image: Any) -> Any:
                return serialized_image

        features = self._builder.info.features
        decoders = {name: Encoded() for name, one in features.items() if _holds_images(one)}
        try:
            return self._builder.as_data_source(split=self._split, decoders=decoders)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(
                f"{self._key} = {self._place!r}, split {self._split!r}, cannot be read ({reason}): prepare it with "
                "file_format='array_record', and give one of its splits"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("_place", "_split", "_key", "_size")}

    def __repr__(self) -> str:
        return f"RecordTable({self._place!r}, {self._split!r}, {self._size} rows)"

    def __len__(self) -> int:
        return self._size

    def row(self, number: int) -> Row:
        if not 0 <= number < self._size:
            raise IndexError(f"row {number} does not exist: there are {self._size}")
        try:
            return {name: _plain(value) for name, value in self._source[number].items()}
        except Exception as error:  # damaged records raise many kinds
            raise RowError(f"the record cannot be read ({' '.join(str(error).split())[:200]})") from error

    def columns(self, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        if not any(name in self._builder.info.features for name in names):
            yield from itertools.repeat((None,) * len(names), self._size)
            return
        for number in range(self._size):
            try:
                row = self._source[number]
            except Exception as error:  # damaged records raise many kinds
                reason = " ".join(str(error).split())[:200]
                raise ConfigError(f"{self.place(number)} is damaged ({reason}): write or download it again") from error
            yield tuple(_plain(row.get(name)) for name in names)

    def place(self, number: int) -> str:
        return f"{self._place}, split {self._split}, record {number}"

    def home(self, number: int) -> str | None:
        del number
        return self._place if os.path.isdir(self._place) else None

    def fingerprint(self) -> str:
        info = self._builder.info
        facts = [info.full_name, self._split, str(self._size)]
        folder = Path(str(self._builder.data_dir))
        facts += [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in sorted(folder.glob("*"))]
        return hashlib.sha256("\0".join(facts).encode()).hexdigest()


def _holds_images(feature: Any) -> bool:
    import tensorflow_datasets as tfds

    inner = getattr(feature, "feature", feature)
    return isinstance(inner, tfds.features.Image)


def _plain(value: Any) -> Any:
    """NumPy's values as Python's; bytes that are text stay bytes, since a column may hold files."""
    if isinstance(value, np.ndarray):
        return [_plain(one) for one in value] if value.ndim else _plain(value.item())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


class HubTable:
    """The rows of a data set of Hugging Face's `datasets`: `pip install 'zppo-jax[hf]'`. Images stay encoded.

    `place` is ID, ID:CONFIG or ID:CONFIG:SPLIT, where ID is a name on the hub or a directory. Raises ConfigError.
    """

    files = ()

    def __init__(self, place: str, split: str, key: str):
        name, _, rest = place.partition(":")
        config, _, given = rest.partition(":")
        self._arguments = (name, config or None, given or split)
        self._key = key
        self._size = len(self._rows)

    @functools.cached_property
    def _rows(self) -> Any:
        name, config, split = self._arguments
        try:
            import datasets  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ConfigError(f"{self._key} = 'hf:{name}' needs datasets: pip install 'zppo-jax[hf]'") from error
        try:
            found = datasets.load_dataset(name, config, split=split)
        except Exception as error:  # datasets raises many kinds
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"{self._key} = 'hf:{name}' does not load ({reason})") from error
        for column, feature in found.features.items():
            found = found.cast_column(column, _undecoded(datasets, feature))
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("_arguments", "_key", "_size")}

    def __repr__(self) -> str:
        return f"HubTable({':'.join(filter(None, self._arguments))}, {self._size} rows)"

    def __len__(self) -> int:
        return self._size

    def row(self, number: int) -> Row:
        if not 0 <= number < self._size:
            raise IndexError(f"row {number} does not exist: there are {self._size}")
        return self._rows[number]

    def columns(self, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        present = [name for name in names if name in self._rows.column_names]
        if not present:
            yield from ((None,) * len(names) for _ in range(self._size))
            return
        for row in self._rows.select_columns(present):
            yield tuple(row.get(name) for name in names)

    def place(self, number: int) -> str:
        return f"hf:{':'.join(filter(None, self._arguments))}, row {number}"

    def home(self, number: int) -> str | None:
        del number
        return None

    def fingerprint(self) -> str:
        return f"{self._rows._fingerprint} {self._size}"  # datasets' own hash of the rows and of what was done to them


def _undecoded(datasets: Any, feature: Any) -> Any:
    """The feature with images as {bytes, path}."""
    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, datasets.List | datasets.Sequence) and isinstance(feature.feature, datasets.Image):
        return datasets.List(datasets.Image(decode=False))
    return feature
