"""Questions read per second, and what the questions of the paper's steps take of memory and time.

    python -m benchmarks.data --read      # questions a second from parquet and ArrayRecord, against datasets and PIL
    python -m benchmarks.data --stream    # the same through Grain, by threads and worker processes
    python -m benchmarks.data --steps     # 384 + 96 questions of 1,310,720 pixels a step, then 512 held-out ones

`--read` writes 512 questions with JPEGs of 1,024 pixels a side, half of them like photographs, then reads them in
random order, decoded and resized to the model's size, in turns with the peer: `datasets` (its own Arrow files of the
same rows) decoding with PIL, in as many threads. Floor 1x, goal 1.5x. The peer's package: pip install datasets.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from configs import paper
from zppo_jax.config import Config, from_config_dict
from zppo_jax.data import records
from zppo_jax.data.pipeline import StepBatch, open_stream
from zppo_jax.data.processing import EncodedPrompt, PromptProcessing, processor_settings
from zppo_jax.data.questions import Reader
from zppo_jax.data.reading import Reading, Room
from zppo_jax.data.sources import TableSource, open_sources, open_table
from zppo_jax.evaluate import HeldOut
from zppo_jax.files import SHIPPED
from zppo_jax.processor import Processor, ProcessorConfig
from zppo_jax.processor.checkpoint import load_processor
from zppo_jax.processor.images import smart_resize
from zppo_jax.processor.media import patches_of
from zppo_jax.rollout.filters import Sampling
from zppo_jax.zppo import ReplayBuffer, prompts

NUM_QUESTIONS = 512
PAPER_ROWS = 5120
Read = Callable[[Sequence[int]], int]


def picture(rng: np.random.Generator, height: int, width: int, photo: bool) -> bytes:
    """A JPEG as photographs (smooth noise) or charts (flat areas) are."""
    if photo:
        small = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    else:
        flat = np.full((height, width, 3), 255, np.uint8)
        for _ in range(40):
            top, left = rng.integers(0, height - 40), rng.integers(0, width - 40)
            flat[top : top + 40, left : left + 40] = rng.integers(0, 256, 3)
        image = Image.fromarray(flat)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def rows(count: int, height: int = 1024, width: int = 1024) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {"id": f"q{n}", "question": f"<image>\nWhat is the value of x in figure {n}?", "answer": str(n),
         "answer_type": "integer", "images": [{"bytes": picture(rng, height, width, n % 2 == 0), "path": f"{n}.jpg"}]}
        for n in range(count)
    ]  # fmt: skip


def config(source: str, **changes: Any) -> Config:
    """The paper's configuration on a source."""
    tree: Any = paper.get_config()
    tree.data.source, tree.model.path = source, "stand-in"
    tree.update_from_flattened_dict(changes)
    return from_config_dict(tree)


def write(folder: Path, given: list[dict[str, Any]], copies: int = 1) -> dict[str, str]:
    """The rows, or several copies under their own ids, as parquet and as ArrayRecord; returns the sources."""
    (folder / "records").mkdir(parents=True)
    (folder / "parquet").mkdir()
    if copies == 1:
        pq.write_table(pa.Table.from_pylist(given), folder / "parquet" / "train-0.parquet", row_group_size=32)
    stored = (
        records.Record(f"{row['id']}-{copy}", row["question"], row["answer"], "integer", (row["images"][0]["bytes"],))
        for copy in range(copies)
        for row in given
    )
    sizes = [records.write_shard(folder / "records" / records.shard_name(0, 1), stored)]
    records.write_metadata(folder / "records", sizes)
    return {"parquet": f"parquet:{folder / 'parquet'}", "arrayrecord": f"arrayrecord:{folder / 'records'}"}


def opened(source: str) -> TableSource:
    reader = Reader(config(source).data.columns, "math", False)
    return open_table(source, "train", "data.source", reader, lambda text: None)


def processing(chosen: Config) -> PromptProcessing:
    processor, _ = load_processor(SHIPPED / "student", **processor_settings(chosen.prompt))
    return PromptProcessing(processor, prompts.get_template(chosen.prompt.template))


# ---------------------------------------------------------------- questions a second


def ours(source: str, threads: int) -> Read:
    """Reads questions as a run does: checked, tokenised, and then decoded to the pixels of their patches."""
    reading = Reading(opened(source), processing(config(source)))

    def read(number: int) -> bool:
        item = reading.at(number)
        assert isinstance(item, EncodedPrompt)
        settings = cast(Processor, reading.process.processor).config
        [picture] = item.prompt.question.images
        height, width = smart_resize(picture.shape[0], picture.shape[1], settings)
        return picture.frames(height, width, settings).nbytes > 0

    return in_threads(read, threads)


def peer(folder: Path, threads: int) -> Read:
    """The same rows by `datasets` and PIL: decoded, resized to the same size, as an array."""
    import datasets  # pyright: ignore[reportMissingImports]

    cache, files = str(folder / "cache"), str(folder / "parquet")
    found = datasets.load_dataset("parquet", data_dir=files, split="train", cache_dir=cache)
    found = found.cast_column("images", datasets.List(datasets.Image()))
    settings = ProcessorConfig(**processor_settings(config("digits").prompt))

    def read(number: int) -> bool:
        image = found[number]["images"][0].convert("RGB")
        height, width = smart_resize(image.height, image.width, settings)
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).nbytes > 0

    return in_threads(read, threads)


def in_threads(read: Callable[[int], bool], threads: int) -> Read:
    def several(numbers: Sequence[int]) -> int:
        with ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(read, numbers))

    return several


def measure_reading(rounds: int) -> None:
    """Prints a line for each number of threads: questions a second, and a CPU second, of each side in turns."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        sources = write(folder, rows(NUM_QUESTIONS))
        for threads in (1, 2, 4):
            sides = {name: ours(source, threads) for name, source in sources.items()}
            with contextlib.suppress(ImportError):
                sides["datasets"] = peer(folder, threads)
            found = {name: [timed(read, turn) for turn in range(rounds)] for name, read in sides.items()}
            columns = {name: zip(*both, strict=True) for name, both in found.items()}
            row = {name: [round(statistics.median(one), 1) for one in column] for name, column in columns.items()}
            print(json.dumps({"threads": threads, "questions per second and CPU second": row}), flush=True)


def timed(read: Read, turn: int) -> tuple[float, float]:
    order = np.random.default_rng(turn).permutation(NUM_QUESTIONS)[:128].tolist()
    start, before = time.perf_counter(), time.process_time()
    assert read(order) == len(order)
    return len(order) / (time.perf_counter() - start), len(order) / (time.process_time() - before)


def measure_stream() -> None:
    """Prints steps' questions a second through Grain, by threads and worker processes."""
    with tempfile.TemporaryDirectory() as directory:
        source = write(Path(directory), rows(NUM_QUESTIONS))["arrayrecord"]
        reading = Reading(opened(source), processing(config(source)))
        for threads, workers in ((1, 0), (2, 0), (4, 0), (1, 1), (1, 2), (2, 2)):
            stream = open_stream(
                reading, seed=0, questions_per_step=64, replay=None, num_replayed=0, num_threads=threads,
                worker_count=workers,
            )  # fmt: skip
            with contextlib.closing(stream):
                next(stream)
                start = time.perf_counter()
                count = sum(len(next(stream).new) for _ in range(12))
                seconds = time.perf_counter() - start
            row = {"threads": threads, "worker_count": workers, "questions_per_second": round(count / seconds, 1)}
            print(json.dumps(row), flush=True)


# ---------------------------------------------------------------- memory, and waiting


def stepping(folder: Path, seconds: float) -> None:
    """Takes steps of the paper's size as a run does: 384 new and 96 replayed questions, their patches made call by call
    for the rollouts and again for the update, and 512 held-out questions; prints peak memory and time waited.

    A step takes `seconds` besides (the paper's about 1,200), so the time in which questions are read ahead is short.
    """
    source = write(folder, rows(16, 1024, 1280), copies=PAPER_ROWS // 16)["arrayrecord"]
    chosen = config(source, **{"eval.num_questions": 512})
    sources, process = open_sources(chosen), processing(chosen)
    num_patches = chosen.prompt.max_images * chosen.prompt.max_pixels // 256
    buffer = ReplayBuffer(chosen.replay.capacity, False)
    reading = Reading(sources.training, process, Room(chosen.prompt.buckets[-1], num_patches))
    before = peak_bytes()
    stream = open_stream(
        reading, seed=0, questions_per_step=384, replay=buffer, num_replayed=96, num_threads=chosen.data.threads
    )
    with contextlib.closing(stream):
        for step in range(1, 4):
            start = time.perf_counter()
            batch = next(stream)
            waited = time.perf_counter() - start
            for _ in ("rollout", "update"):
                for first in range(0, len(batch.items), 32):
                    patches_of([item.features for item in batch.items[first : first + 32]])
            buffer.refresh({item.prompt.question.id: 0.0 for item in batch.new}, step, 0.5)
            time.sleep(seconds)
            whole = time.perf_counter() - start
            report(step, batch, waited, whole, before)
        held_out = HeldOut(cast(Any, None), Reading(sources.held_out, process), range(512), Sampling(), 1, 0)
        for piece in held_out.encoded():
            for first in range(0, len(piece), 32):
                patches_of([item.features for item in piece[first : first + 32]])
    print(json.dumps({"held_out": 512, "peak_gigabytes": gigabytes(before)}))


def report(step: int, batch: StepBatch, waited: float, whole: float, before: int) -> None:
    row = {"step": step, "new": len(batch.new), "replayed": len(batch.replayed), "peak_gigabytes": gigabytes(before)}
    print(json.dumps(row | {"waited": round(waited, 2), "share": round(waited / whole, 4)}), flush=True)


def gigabytes(before: int) -> float:
    return round((peak_bytes() - before) / 1e9, 2)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--read", action="store_true", help="questions a second, against datasets and PIL")
    parser.add_argument("--stream", action="store_true", help="questions a second by threads and worker processes")
    parser.add_argument("--steps", action="store_true", help="memory of the paper's steps, and time waited for them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30.0, help="that a step takes besides")
    arguments = parser.parse_args()
    if arguments.read:
        measure_reading(arguments.rounds)
    if arguments.stream:
        measure_stream()
    if arguments.steps:
        with tempfile.TemporaryDirectory() as directory:
            stepping(Path(directory), arguments.seconds)


if __name__ == "__main__":
    main()
