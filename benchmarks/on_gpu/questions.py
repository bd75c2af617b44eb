"""Made-up questions and random models for a run, and a reward that is right for half of all responses.

Random models earn no reward by the rules, a group without a right and a wrong response has no gradient, and a question
that nobody solves has no BCQ prompt: so here the parity of a response's characters decides.
"""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.on_gpu import measuring

NO_DEVICE = 3
"""The exit status of the command where there is no GPU, which it says."""

TEXTS = ("What is the mean of the picture's brightest corner?", "Which of the colours takes more room?", "How many?")


def parity(response: str, question: Any) -> bool:
    """A reward (docs/rewards.md): whether the response has an even number of characters."""
    del question
    return len(response) % 2 == 0


def write(directory: Path, count: int, side: int) -> None:
    """Writes `count` questions with a random picture each, of `side` pixels, as a parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    rng, rows = np.random.default_rng(0), []
    for number in range(count):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(file, "PNG")
        text = TEXTS[number % len(TEXTS)]
        rows.append({"id": f"q{number}", "question": text, "answer": str(number % 10), "image": file.getvalue()})
    directory.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), directory / "train.parquet", row_group_size=32)


def write_model(directory: Path, size: str, seed: int, small: bool) -> None:
    """Writes a random checkpoint of a published size in bfloat16, with the tokenizer of the shipped models; with
    `small`, of the shipped models' size with one layer of each kind."""
    from benchmarks import models
    from zppo_jax.models.qwen3_5 import config as configs
    from zppo_jax.models.qwen3_5 import hf, sizes
    from zppo_jax.processor import Processor
    from zppo_jax.warmstart import SHIPPED

    shipped, published = configs.from_directory(SHIPPED / "student"), sizes.get(size)
    if small:
        layers = dataclasses.replace(shipped.text, num_hidden_layers=2, full_attention_interval=2)
        config = dataclasses.replace(shipped, text=layers)
    else:
        config = dataclasses.replace(shipped, text=published.text, vision=published.vision)
    hf.save_directory(directory, config, models.random_params(config, seed), "bfloat16")
    Processor.from_directory(SHIPPED / "student").save(directory)


def main() -> None:
    """python -m benchmarks.on_gpu.questions FOLDER SIZE TEACHER (whole|small): `questions`, `student` and `teacher`."""
    import sys

    folder, size, teacher, scale = sys.argv[1:]
    small = scale == "small"
    if not measuring.has_device(small):
        sys.exit(NO_DEVICE)
    write(Path(folder) / "questions", 40 if small else 200, 64 if small else 512)
    write_model(Path(folder) / "student", size, 0, small)
    write_model(Path(folder) / "teacher", teacher, 1, small)


if __name__ == "__main__":
    main()
