"""Miniature corpora in the exact schemas of Vero-600k and MMFineReason, with every kind of wrong row.

`write(DIR)` writes both in less than a second and says what a build with default flags must count. The rows are listed
in `VERO` and `MMFINEREASON`, each with the reason for which it is dropped; None: it is kept.

    python -m tests.data.miniature DIR
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import io
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

NO_IMAGE = "no image"
DAMAGED = "damaged"
LONG = "word " * 5000
THOUGHTS = "<think>The picture shows it.</think><answer>{}</answer>"

SYSTEM = "Think in <think> </think> tags, then answer in <answer> </answer> tags with one \\boxed{}."
CHOICES = "\nA) a cat B) a dog C) a cow D) a hen"
LETTER_HINT = "\nAnswer with the option's letter from the given choices directly."


@dataclasses.dataclass(frozen=True)
class Row:
    """One row: the sub-dataset's upstream name, what it holds, and why a default build drops it (None: it keeps it).

    `image` is a number (equal numbers are equal pictures), a size (width, height), NO_IMAGE or DAMAGED; `images` has
    several instead. `kind` is Vero's reward type or MMFineReason's pass rate. `name` is the canonical name.
    """

    upstream: str
    name: str
    question: str
    gold: str | None
    kind: Any = None
    reason: str | None = None
    image: Any = None
    images: Sequence[Any] | None = None
    tolerance: float | None = None
    video: bool = False


def _vero() -> Iterable[Row]:
    tqa, numeric = functools.partial(Row, "stem-tqa", "tqa"), functools.partial(Row, "stem-geomverse", "geomverse")
    for number in range(8):
        question = f"<image>\nWhich animal is number {number}?{CHOICES}"
        yield tqa(question, "ABCD"[number % 4], "multiple_choice", image=1000 + number)
    yield tqa(f"<image>\nWhich animal is number 0?{CHOICES}", "A", "multiple_choice", "duplicate", image=1000)
    yield tqa(f"<image>\n  which animal is NUMBER 0 {CHOICES}", "A", "multiple_choice", "duplicate", image=1000)
    yield tqa(f"<image>\nWhich animal is missing?{CHOICES}", "F", "multiple_choice", "gold_not_verifiable")
    yield tqa(f"<image>\nWhich animal is small?{CHOICES}", "B", "multiple_choice", "image_too_small", image=(99, 300))
    yield tqa(f"<image>\nWhich animal is torn?{CHOICES}", "B", "multiple_choice", "image_unreadable", image=DAMAGED)
    yield tqa(f"Which animal is in words?{CHOICES}", "B", "multiple_choice", "image_count", image=NO_IMAGE)
    yield tqa(f"<image><image>\nWhich animal is twice?{CHOICES}", "B", "multiple_choice", "image_count")
    for number in range(6):
        yield numeric(
            f"<image>\nHow long is side {number}?", f"{number}.5", "numeric", image=1100 + number, tolerance=0.01
        )
    yield numeric("<image>\nHow long is nothing?", "  ", "numeric", "gold_empty")
    yield numeric("<image>\nHow long is none?", None, "numeric", "gold_empty")
    yield numeric("<image>\nHow long is a word?", "seven apples", "numeric", "gold_not_verifiable")
    yield numeric("<image>\nHow long is the answer?", "1" * 513, "numeric", "answer_too_long")
    yield numeric(f"<image>\nHow long is this? {LONG}", "3", "numeric", "prompt_too_long")
    yield numeric("<image>\nDescribe it.", "A drawing of a circle.", "llm_judge", "answer_type")
    yield numeric("<image>\nWhat is new?", "x", "a_new_type", "answer_type")
    vqa = functools.partial(Row, "knowledge_recognition-vqav2", "vqav2")
    yield vqa("<image>\nWhat colour is the bus?", "['red', 'dark red']", "list_string_match")
    yield vqa("<image>\nWhat colour is the car?", "['blue'", "list_string_match", "gold_not_verifiable")
    yield vqa("<image>\nWhat colour is the sky?", str(["blue"] * 100), "list_string_match", "answer_too_long")
    yield Row("counting_grounding_search-tallyqa", "tallyqa", "<image>\nHow many cats?", "3", "counting")
    yield Row("stem-pathvqa", "pathvqa", "<image>\nWhat is stained?", "liver", "string_match")
    yield Row("stem-wemath20_pro", "wemath", "<image>\nHow many sides?", "4", "numeric")
    yield Row("stem-wemath20_standard", "wemath", "<image>\nHow many corners?", "5", "numeric")


def _mmfinereason() -> Iterable[Row]:
    mmr1, bmmr = functools.partial(Row, "MMR1", "mmr1"), functools.partial(Row, "BMMR", "bmmr")
    for number in range(6):
        yield mmr1(
            f"<image>What is {number} more than the number shown?", str(number + 2), (0.0, 0.25, 0.5)[number % 3]
        )
    yield mmr1("<image>What is easy?", "1", 0.75, "pass_rate")
    yield mmr1("<image>What is very easy?", "1", 1.0, "pass_rate")
    yield mmr1("<image>What is not measured?", "1", None, "pass_rate_missing")
    yield mmr1("<image>What has no answer?", None, 0.0, "gold_empty")
    yield mmr1("<image>What is too long?", "x" * 513, 0.0, "answer_too_long")
    yield mmr1("<image>What is in the tags?", THOUGHTS.format("7"), 0.0)
    yield mmr1("<image>What is empty in the tags?", THOUGHTS.format(" "), 0.0, "gold_empty")
    yield mmr1("<image>Find the share.", r"\frac{1}{2}", 0.0)
    yield mmr1("<image>Find the fault.", r"\frac{1}{", 0.0, "gold_not_verifiable")
    yield mmr1(
        "<image>Why is it so?", "Because the force on the left is larger than the other one.", 0.0, "answer_type"
    )
    yield mmr1("<image>How long is side 0?", "9", 0.0, "duplicate", image=1100)
    yield bmmr(f"<image>Which one?{CHOICES}{LETTER_HINT}", "B", 0.25)
    yield bmmr("<image>Is it larger?", "Yes", 0.25)
    yield bmmr("<image>Which option of the picture?", "E", 0.25)
    yield bmmr("<image>A picture of no size?", "5", 0.25, "image_too_small", image=(400, 60))
    yield bmmr("Two pictures: how many digits in both?", "6", 0.25, "image_count", images=(31, 32))
    yield bmmr("How much is two and three?", "5", 0.25, "image_count", images=())
    for number in range(3):
        yield Row("FineVision-tqa", "tqa", f"<image>Which organ is {number}?", "C", 0.0, "other_source_wins")
    yield Row("FineVision-tqa", "tqa", "<image>Which organ is easy?", "C", 1.0, "other_source_wins")
    repeated = f"<image>\nWhich animal is number 0?{CHOICES}"
    yield Row("FineVision-tqa", "tqa", repeated, "A", 0.0, "other_source_wins", image=1000)
    yield Row("WeMath2-SFT", "wemath", "<image>Which edge?", "C", 0.0, "other_source_wins")
    yield Row("VisualSphinx", "visualsphinx", "<image>Which picture comes next?", "D", 0.0)
    yield Row("FineVision-ai2d_merged", "ai2d", f"<image>Which stage?{CHOICES}", "A", 0.5)


VERO: tuple[Row, ...] = tuple(_vero())
MMFINEREASON: tuple[Row, ...] = tuple(_mmfinereason())
VIDEO = Row("BMMR", "bmmr", "Which digit comes first?", "3", 0.25, "image_count", images=(), video=True)
NOT_IN_RECIPE: tuple[Row, ...] = (
    Row("GameQA-140K", "gameqa", "<image>Which move?", "A", 0.0),
    Row("WaltonColdStart", "walton", "<image>Which one?", "B", 0.0),
)


@dataclasses.dataclass(frozen=True)
class Miniature:
    """The folders, and what a default build counts: {sub-dataset: {"read": n, "kept": n, "dropped": {reason: n}}}."""

    vero: Path
    mmfinereason: Path
    expected: dict[str, dict[str, Any]]

    @property
    def flags(self) -> list[str]:
        """The flags of the builder that name both."""
        return [f"--vero={self.vero}", f"--mmfinereason={self.mmfinereason}"]


def expected(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """The counts of a default build of these rows."""
    counts: dict[str, dict[str, Any]] = {}
    for row in rows:
        entry = counts.setdefault(row.name, {"read": 0, "kept": 0, "dropped": collections.Counter()})
        entry["read"] += 1
        entry["kept"] += row.reason is None
        entry["dropped"].update([row.reason] * (row.reason is not None))
    return {name: entry | {"dropped": dict(entry["dropped"])} for name, entry in counts.items()}


def write(directory: str | Path, video: bytes | None = None, rows_per_group: int = 5) -> Miniature:
    """Writes both corpora into `directory`/vero and /mmfinereason. `video` adds a row with this file as its video.

    Vero: a folder a config with two files of the split train, and one of val, which no build reads. MMFineReason: two
    files, the second of which has lists of images; in it rows without an image and with two, and the video.
    """
    directory = Path(directory)
    vero, mmfinereason = directory / "vero", directory / "mmfinereason"
    numbered = {id(row): number for number, row in enumerate((*VERO, *MMFINEREASON, *NOT_IN_RECIPE, VIDEO))}
    for config in dict.fromkeys(row.upstream for row in VERO):
        rows = [row for row in VERO if row.upstream == config]
        for part, chosen in enumerate((rows[: len(rows) // 2], rows[len(rows) // 2 :])):
            table = vero_table([vero_row(row, numbered[id(row)]) for row in chosen])
            write_table(vero / config / f"train-{part:05d}-of-00002.parquet", table, rows_per_group)
        table = vero_table([vero_row(dataclasses.replace(rows[0], question="<image>\nOf val?"), 999)])
        write_table(vero / config / "val-00000-of-00001.parquet", table, rows_per_group)
    films = (VIDEO,) if video else ()
    singles = [row for row in (*MMFINEREASON, *NOT_IN_RECIPE) if row.images is None]
    lists = [*(row for row in MMFINEREASON if row.images is not None), *films]
    single = mmfinereason_table([mmfinereason_row(row, numbered[id(row)]) for row in singles])
    several = mmfinereason_table([mmfinereason_row(row, numbered[id(row)], video) for row in lists], lists=True)
    write_table(mmfinereason / "data" / "train-00000-of-00002.parquet", single, rows_per_group)
    write_table(mmfinereason / "data" / "train-00001-of-00002.parquet", several, rows_per_group)
    return Miniature(vero, mmfinereason, expected((*VERO, *MMFINEREASON, *films)))


def write_table(path: Path, table: pa.Table, rows_per_group: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows_per_group)


# ---------------------------------------------------------------- rows in the exact schemas

MEDIA = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
_EXTRA = pa.struct(
    [("id", pa.string()), ("split", pa.string()), ("index", pa.int64()), ("question", pa.string()),
     ("answer", pa.string()), ("reward_type", pa.string()), ("tolerance", pa.float64())]
)  # fmt: skip
VERO_SCHEMA = pa.schema(
    [("id", pa.string()), ("image", MEDIA), ("prompt", pa.list_(_MESSAGE)), ("data_source", pa.string()),
     ("ability", pa.string()), ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
     ("extra_info", _EXTRA)]
)  # fmt: skip
MMFINEREASON_SCHEMA = pa.schema(
    [("source", pa.string()), ("id", pa.int64()), ("original_question", pa.string()), ("original_answer", pa.string()),
     ("image", MEDIA), ("question", pa.string()), ("answer", pa.string()),
     ("qwen3vl_235b_instruct_caption", pa.string()), ("qwen3vl_235b_thinking_response", pa.string()),
     ("pass_rate", pa.float64()), ("is_consistent", pa.bool_()), ("consistency_analysis", pa.string())]
)  # fmt: skip


def vero_row(row: Row, number: int) -> dict[str, Any]:
    """A row as Vero-600k has it; every third has its id only in extra_info."""
    config, written = row.upstream, f"{row.upstream.split('-')[0]}_{number}"
    extra = {
        "id": written, "split": "train", "index": number, "question": row.question, "answer": row.gold,
        "reward_type": row.kind, "tolerance": row.tolerance,
    }  # fmt: skip
    return {
        "id": None if number % 3 == 0 else written,
        "image": None
        if row.image == NO_IMAGE
        else {"bytes": picture(row.image, 100 + number), "path": f"{number}.png"},
        "prompt": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": row.question}],
        "data_source": config.split("-", 1)[1],
        "ability": config.split("-")[0],
        "reward_model": {"style": "rule", "ground_truth": row.gold},
        "extra_info": extra,
    }


def mmfinereason_row(row: Row, number: int, video: bytes | None = None) -> dict[str, Any]:
    """A row as MMFineReason has it. Ids repeat across sources, as in the real set."""
    one = row.image if row.image is not None else 200 + number
    made = {
        "source": row.upstream, "id": number % 20, "original_question": row.question + " Answer in <answer> tags.",
        "original_answer": THOUGHTS.format(row.gold), "question": row.question, "answer": row.gold,
        "image": {"bytes": picture(one, 200 + number), "path": f"images/{number}.jpg"},
        "qwen3vl_235b_instruct_caption": "A picture.", "qwen3vl_235b_thinking_response": THOUGHTS.format(row.gold),
        "pass_rate": row.kind, "is_consistent": True, "consistency_analysis": "The answers agree.",
    }  # fmt: skip
    if row.images is not None:
        made["image"] = [{"bytes": picture(image, 200 + number), "path": None} for image in row.images]
        made["videos"] = [{"bytes": video, "path": "film.mp4"}] if row.video else []
    return made


def vero_table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=VERO_SCHEMA)


def mmfinereason_table(rows: list[dict[str, Any]], lists: bool = False, **renamed: str) -> pa.Table:
    """`lists`: with lists of images and of videos. `renamed`: columns with another name, as some releases have."""
    schema = MMFINEREASON_SCHEMA
    if lists:
        place = schema.get_field_index("image")
        schema = schema.set(place, pa.field("image", pa.list_(MEDIA))).append(pa.field("videos", pa.list_(MEDIA)))
    table = pa.Table.from_pylist(rows, schema=schema)
    return table.rename_columns([renamed.get(name, name) for name in table.column_names])


@functools.lru_cache(256)
def picture(content: Any, otherwise: int) -> bytes:
    """The file of a picture: small random blocks that depend on the number `content`, or on `otherwise` if None."""
    width, height = content if isinstance(content, tuple) else (128, 112)
    number = content if isinstance(content, int) else otherwise
    blocks = np.random.default_rng(number).integers(0, 256, (7, 8, 3), np.uint8)
    file = io.BytesIO()
    kind = "PNG" if number % 4 == 0 else "JPEG"
    Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST).save(file, kind)
    return file.getvalue()[: len(file.getvalue()) // 2] if content == DAMAGED else file.getvalue()


if __name__ == "__main__":
    print(" ".join(write(sys.argv[1]).flags))
