"""From a corpus to training: build, inspect, check, two steps with every kind of question in them, resume."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import runs
from tests.data.zppo77k.conftest import build, corpora, tokenizer  # noqa: F401
from tests.processor.test_video_files import mp4  # noqa: F401
from zppo_jax.command.heartbeat import Heartbeat
from zppo_jax.data import inspect, records
from zppo_jax.data.check import check
from zppo_jax.data.progress import Progress
from zppo_jax.data.tables.hub import RecordTable
from zppo_jax.train import Run

pytestmark = pytest.mark.slow

SETTINGS: dict[str, Any] = {
    "num_steps": 2,
    "data__num_questions": 1000,
    "data__bad_rows": "skip",
    "data__threads": 2,
    "prompt__buckets": (128, 512),
    "prompt__max_images": 2,
    "rollout__questions_per_step": 16,
    "rollout__group_size": 2,
    "rollout__slots": 16,
    "update__row_tokens": 0,
    "replay__fraction": 0.25,
    "eval__num_questions": 4,
    "eval__every": 2,
    "checkpoint__every": 1,
}


def png(height: int, width: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def corpus(build, mp4, tmp_path) -> Path:  # noqa: F811
    """What the builder makes of the miniature corpora, and questions of the kinds that those do not hold."""
    build(tmp_path / "built")
    stored = RecordTable(str(tmp_path / "built"), "train", "built")
    built = [records.Record(**_fields(stored.row(number))) for number in range(len(stored))]
    others = [
        records.Record("text", "read 7", "7", "integer"),
        records.Record("two", "Is <image> in <image>?", "yes", "string", (png(40, 60), png(50, 70))),
        records.Record("film", "<video>read", "8", "integer", (), (mp4,)),
        records.Record("both", "<video><image>read", "9", "integer", (png(32, 32),), (mp4,), metadata={"book": "one"}),
        records.Record("torn", "read", "9", "integer", (png(64, 64)[:-50],)),
    ]
    more = [dataclasses.replace(one, id=f"{one.id}-{n}") for n in range(3) for one in others[:4]]
    folder = tmp_path / "data"
    folder.mkdir()
    sizes = [records.write_shard(folder / records.shard_name(0, 1), [*built[:16], *more, others[-1]])]
    records.write_metadata(folder, sizes)
    return folder


def _fields(row: Any) -> dict[str, Any]:
    """The fields of a record from a row of its table."""
    media = {name: tuple(row[name]) for name in ("images", "videos")}
    texts = {name: row[name].decode() for name in row if name not in media}
    return media | texts | {name: json.loads(texts[name]) for name in ("options", "metadata")}


def test_a_corpus_is_built_checked_and_trained_on(start, corpus, tmp_path, capsys):
    source = f"arrayrecord:{corpus}"
    inspect.main(["inspect", str(corpus), f"--out={tmp_path}/page.html"])
    assert "1  image_unreadable" in capsys.readouterr().out
    settings: dict[str, Any] = SETTINGS | {"data__source": source}
    [found] = check(runs.config(start, **settings), Progress(io.StringIO(), Heartbeat()), 2)
    assert {one.question_id: one.reason for one in found.bad.values()} == {"torn": "image_unreadable"}
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    runs.run(start, straight, **settings)
    lines = runs.samples(straight)
    asked = {line["question_id"].split("-")[0] for line in lines if line["kind"] == "plain"}
    assert {"text", "two", "film", "both"} <= asked
    assert any(line["metadata"] for line in lines)
    with runs.undrawn(), Run.open(runs.config(start, **settings), resumed) as run:
        for _ in run:
            break
    runs.run(start, resumed, **settings)
    runs.assert_same_end(straight, resumed, 2)
