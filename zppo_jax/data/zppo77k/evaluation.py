"""Evaluation data, as keys of its images and questions: what shares one of them is taken out of the corpus.

Read are the parquet files of a folder, whatever their columns: images in any column of {bytes, path} structs or bytes,
questions in the columns of `QUESTIONS`; and image files. The keys are exact (`keys`): a picture that was compressed
again is not found by its image, and mostly by its question.
"""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa

from zppo_jax.data.zppo77k import inputs, keys, upstream
from zppo_jax.errors import ConfigError
from zppo_jax.files import write_atomically
from zppo_jax.processor import load_image

QUESTIONS = ("question", "query", "problem", "prompt", "text", "question_for_eval", "instruction", "Question")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_BATCH = 16


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The keys of all evaluation images and questions."""

    images: frozenset[bytes] = frozenset()
    questions: frozenset[bytes] = frozenset()

    def shares(self, question: str, image_keys: Sequence[bytes], by: str) -> bool:
        """Whether a row shares what `by` says: "image", "question", "either" or "both"."""
        if not self.images and not self.questions:
            return False
        image = not self.images.isdisjoint(image_keys)
        text = not self.questions.isdisjoint(keys.question_keys(question))
        return {"image": image, "question": text, "either": image or text, "both": image and text}[by]

    def merged(self, other: Evaluation) -> Evaluation:
        return Evaluation(self.images | other.images, self.questions | other.questions)

    def save(self, path: Path) -> None:
        """Writes the keys, sorted, so that equal data give equal files."""
        parts = [b"".join(sorted(part)) for part in (self.images, self.questions)]
        write_atomically(path, len(self.images).to_bytes(8, "little") + b"".join(parts))

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        content = path.read_bytes()
        count, rows = int.from_bytes(content[:8], "little"), content[8:]
        all_keys = [rows[start : start + keys.SIZE] for start in range(0, len(rows), keys.SIZE)]
        return cls(frozenset(all_keys[:count]), frozenset(all_keys[count:]))


def find(sources: Iterable[str]) -> dict[str, str]:
    """The parquet and image files of the folders: the path of each by a name that does not depend on the machine.

    Raises ConfigError for a folder that holds neither.
    """
    found: dict[str, str] = {}
    for source in sources:
        fs, root = fsspec.core.url_to_fs(inputs.url_of(source))
        paths = [path for path in fs.find(root) if path.lower().endswith((".parquet", *_PICTURES))]
        if not paths:
            raise ConfigError(f"--decontaminate={source} holds no parquet and no image files: name evaluation data")
        folder = posixpath.basename(root.rstrip("/"))
        for path in sorted(paths):
            found[f"evaluation/{folder}/{posixpath.relpath(path, root)}"] = fs.unstrip_protocol(path)
    return found


def keys_of(path: str) -> Evaluation:
    """The keys of one file. Images that cannot be decoded are left out: no row of the corpus can equal them."""
    if not path.endswith(".parquet"):
        with fsspec.open(path, "rb") as file:
            return Evaluation(images=frozenset(_image_keys([file.read()])))  # pyright: ignore[reportAttributeAccessIssue]
    images: set[bytes] = set()
    questions: set[bytes] = set()
    with inputs.opened(path) as parquet:
        pictures = [field.name for field in parquet.schema_arrow if _holds_files(field.type)]
        texts = [field.name for field in parquet.schema_arrow if field.name in QUESTIONS and _is_text(field.type)]
        if not pictures and not texts:
            raise ConfigError(f"{path} has neither images nor a column {', '.join(QUESTIONS)}: rename its columns")
        for batch in parquet.iter_batches(_BATCH, columns=[*pictures, *texts], use_threads=False):
            for name in pictures:
                images.update(key for cell in batch.column(name) for key in _image_keys(upstream.media(cell.as_py())))
            for name in texts:
                questions.update(key for cell in batch.column(name) for key in keys.question_keys(cell.as_py() or ""))
    return Evaluation(frozenset(images), frozenset(questions))


def _image_keys(files: Iterable[bytes | None]) -> list[bytes]:
    found = []
    for file in files:
        try:
            found.append(keys.image_key(load_image(file or b"")))
        except ValueError:
            continue
    return found


def _is_text(kind: Any) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _holds_files(kind: Any) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_files(kind.value_type)
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
