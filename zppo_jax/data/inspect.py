"""python -m zppo_jax.data.inspect DIR_OR_SOURCE: what a source of questions holds, in numbers and pictures."""

from __future__ import annotations

import base64
import collections
import dataclasses
import importlib.resources
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from PIL import Image

from zppo_jax import command
from zppo_jax.command.heartbeat import Heartbeat
from zppo_jax.command.terminal import one_harmless_line
from zppo_jax.config.schema import ColumnsConfig
from zppo_jax.data.progress import Progress
from zppo_jax.data.questions import BadRow, Reader
from zppo_jax.data.sources import TABLES, TableSource, open_table
from zppo_jax.errors import ConfigError, RunError
from zppo_jax.processor import Picture, Processor
from zppo_jax.processor.checkpoint import load_processor
from zppo_jax.types import IMAGE_MARK, VIDEO_MARK, Question

_EXAMPLE = "python -m zppo_jax.data.inspect data/zppo77k --out=inspect.html"
_THUMBNAIL = 448
_MOST_ROWS = 40
_THREADS = 8

_HELP = f"""\
Shows what a source of questions holds: counts by level (sub-dataset), answer type, image size and prompt length, and an
HTML page of random questions with their pictures.

  {_EXAMPLE}

The source is one of {", ".join(kind.form for kind in TABLES.values())}, or just a directory,
whose files say what it is.

Flags:
  --out=inspect.html     the page; it needs no network, and runs nothing that a question holds
  --samples=50           questions on the page, drawn with --seed=0
  --split=train          split of the source
  --tokenizer=DIR        counts prompt lengths in tokens: a checkpoint's directory or OWNER/NAME; without it they are
                         in characters
  --columns=NAME=COLUMN,...  columns with other names, as in question=problem,answer=solution
  --answer_type=math     of rows that have none
  --allow_outside=False  paths of images may leave the directory of their data file
"""

_FLAGS = flags.FlagValues()
_OUT = flags.DEFINE_string("out", "inspect.html", "the page", flag_values=_FLAGS)
_SAMPLES = flags.DEFINE_integer("samples", 50, "on the page", lower_bound=0, flag_values=_FLAGS)
_SEED = flags.DEFINE_integer("seed", 0, "of the samples", lower_bound=0, flag_values=_FLAGS)
_SPLIT = flags.DEFINE_string("split", "train", "of the source", flag_values=_FLAGS)
_TOKENIZER = flags.DEFINE_string("tokenizer", "", "counts tokens", flag_values=_FLAGS)
_COLUMNS = flags.DEFINE_list("columns", [], "other names", flag_values=_FLAGS)
_ANSWER_TYPE = flags.DEFINE_string("answer_type", "math", "of rows without one", flag_values=_FLAGS)
_ALLOW_OUTSIDE = flags.DEFINE_bool("allow_outside", False, "paths", flag_values=_FLAGS)


class Facts(NamedTuple):
    """One question in numbers: its values by the name of a table."""

    level: str
    answer_type: str
    image_size: str
    prompt_length: str


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exit status: 0 shown, 2 a mistake on the command line, 1 anything else."""
    command.run(argv, _HELP, _run)


def _run(argv: Sequence[str]) -> None:
    given = [one for one in argv[1:] if not one.startswith("-")]
    command.read(_FLAGS, [one for one in argv if one not in given], "zppo_jax.data.inspect", _EXAMPLE, ())
    if len(given) != 1:
        raise ConfigError(f"give one source, as in `{_EXAMPLE}`")
    try:
        with Heartbeat(sys.stderr) as heartbeat:
            _show(given[0], Progress(sys.stderr, heartbeat))
    except (RunError, OSError) as error:
        command.exit_with(error, 1)
    except KeyboardInterrupt:
        command.exit_with("stopped", 130)


def _show(name: str, progress: Progress) -> None:
    reader = Reader(columns(_COLUMNS.value or ()), _ANSWER_TYPE.value or "", bool(_ALLOW_OUTSIDE.value))
    source = open_table(guessed(name), _SPLIT.value or "", "the source", reader, progress.line)
    processor = _processor(_TOKENIZER.value) if _TOKENIZER.value else None
    tables = counted(source, processor, progress)
    for title, counts in tables:
        print(f"\n{title}")
        for value, count in counts:
            print(f"  {count:>10,}  {one_harmless_line(value)}")
    out = Path(_OUT.value or "")
    out.write_text(page(name, source, tables, _SAMPLES.value, _SEED.value), encoding="utf-8", errors="replace")
    print(f"\n{len(source):,} questions; pictures: {out}")


def _processor(name: str) -> Processor:
    try:
        return load_processor(name)[0]
    except (OSError, ValueError) as error:
        raise ConfigError(f"--tokenizer={name}: {error}") from error


def columns(changes: Sequence[str]) -> ColumnsConfig:
    """The columns by their usual names, which are the words of the configuration, with changes NAME=COLUMN."""
    names = {field.name: field.name for field in dataclasses.fields(ColumnsConfig)}
    for change in changes:
        name, equals, column = change.partition("=")
        if name not in names or not equals:
            raise ConfigError(f"--columns={change}: give NAME=COLUMN, with NAME one of {', '.join(names)}")
        names[name] = column
    return ColumnsConfig(**names)


def guessed(name: str) -> str:
    """The source that a directory or file is, by what it holds; other names as they are."""
    if name.partition(":")[0] in TABLES or not os.path.exists(name):
        return name
    if name.endswith((".jsonl", ".ndjson")):
        return f"jsonl:{name}"
    if (Path(name) / "features.json").is_file():
        return f"arrayrecord:{name}"
    return f"parquet:{name}" if name.endswith(".parquet") or any(Path(name).rglob("*.parquet")) else f"jsonl:{name}"


def counted(source: TableSource, processor: Processor | None, progress: Progress) -> list[tuple[str, list[Any]]]:
    """For each property the values with their counts, the commonest first; bad rows by their reason."""
    counters: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)

    def facts(number: int) -> Facts | str:
        try:
            return facts_of(source[number], processor)
        except BadRow as error:
            return error.reason

    for found in progress.mapped("reading", "questions", facts, len(source), _THREADS):
        if isinstance(found, str):
            counters["rows that cannot be used"][found] += 1
            continue
        for name, value in found._asdict().items():
            counters[name.replace("_", " ")][value] += 1
    order = ("level", "answer type", "image size", "prompt length", "rows that cannot be used")
    return [(name, counters[name].most_common(_MOST_ROWS)) for name in order if counters[name]]


def facts_of(question: Question, processor: Processor | None) -> Facts:
    """One question in numbers; images by the power of two of their longer side, lengths by that of their number."""
    shapes = [one.shape for one in question.images if isinstance(one, Picture)]
    sides = sorted(max(shape[:2]) for shape in shapes)
    media = f"{len(shapes)} images, " if len(shapes) > 1 else ""
    media += f"longer side up to {_power(sides[-1])}" if sides else "no image"
    media += f", {len(question.videos)} videos" if question.videos else ""
    if processor is None:
        length = f"up to {_power(len(question.text))} characters"
    else:
        sizes = [(shape[0], shape[1]) for shape in shapes]
        length = f"up to {_power(_num_tokens(processor, question, sizes))} tokens"
    return Facts(question.level or "(none)", question.answer_type, media, length)


def _num_tokens(processor: Processor, question: Question, sizes: Sequence[tuple[int, int]]) -> int:
    try:
        return processor.num_tokens(question.text, sizes, question.videos)
    except ImportError as error:  # of a package that is an extra
        raise RunError(f"question {question.id} has a video: {error}") from error
    except ValueError as error:
        raise BadRow("video_unreadable" if question.videos else "image_unreadable", str(error)) from error


def _power(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


def page(name: str, source: TableSource, tables: Sequence[Any], num_samples: int, seed: int) -> str:
    """The HTML page. All texts are escaped, and a content policy forbids scripts and addresses."""
    import jinja2

    order = np.random.default_rng(seed).permutation(len(source))[:num_samples].tolist()
    template = importlib.resources.files("zppo_jax.data").joinpath("inspect.jinja").read_text(encoding="utf-8")
    samples = [_sample(source, number) for number in sorted(order)]
    rendered = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(template)
    return rendered.render(source=name, size=len(source), seed=seed, tables=tables, samples=samples)


def _sample(source: TableSource, number: int) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": source.index.ids[number], "place": source.place(number), "fault": ""}
    try:
        question = source[number]
        images = [_thumbnail(one) for one in question.images if isinstance(one, Picture)]
    except (BadRow, ValueError) as error:
        return shown | {"fault": str(error)}
    more = dict(question.options) | dict(question.metadata)
    text = question.text.replace(IMAGE_MARK, "<image>").replace(VIDEO_MARK, "<video>")
    facts = {"answer": question.answer, "answer_type": question.answer_type, "level": question.level}
    return shown | facts | {"text": text, "images": images, "more": str(more) if more else ""}


def _thumbnail(picture: Picture) -> str:
    """The picture as a small JPEG, in base64."""
    image = Image.fromarray(picture.pixels())
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    main()
