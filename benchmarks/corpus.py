"""The corpus builder: python -m benchmarks.corpus --rows=10000,100000 --workers=2

Writes synthetic corpora of so many rows in the exact schemas (half Vero, half MMFineReason; JPEGs of 512 x 384 pixels,
30 KB; row groups of 100 rows, as the Hub has them), builds each, prints a JSON line: rows a second from the start of
the command to its end, processor seconds of all its processes, and the largest memory of the command and of all its
processes together (proportional set size: shared pages count once). The memory of both sizes must be about the same.

Rows are real work: every image is decoded and hashed, one answer in ten needs the computer algebra system, a third of
the MMFineReason rows is too easy. Pictures repeat after 200, questions never do. There are no caps, so that every row
that passes is written.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data import miniature
from tests.data.miniature import Row
from zppo_jax.warmstart import tiny

_PICTURES = 200
_FILE_ROWS = 5000
_CONFIGS = ("stem-tqa", "stem-geomverse", "stem-mmk12", "chart_ocr-evochart", "counting_grounding_search-tallyqa")
_SOURCES = ("MMR1", "BMMR", "ViRL39K", "Euclid30K", "PuzzleQA")


@functools.lru_cache(_PICTURES)
def picture(number: int) -> bytes:
    """A JPEG with structure at several scales, as photographs and diagrams have."""
    rng = np.random.default_rng(number)
    layers = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)).resize((512, 384)))
        for size in (4, 16, 64)
    ]
    file = io.BytesIO()
    Image.fromarray(np.mean(layers, 0).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def vero_rows(config: str, start: int, count: int) -> list[dict]:
    choices = "\nA) red B) green C) blue D) black"
    kinds = (("B", "multiple_choice", choices), ("12.5", "numeric", ""), ("7", "counting", ""))
    rows = []
    for number in range(start, start + count):
        gold, kind, options = kinds[number % 3]
        made = miniature.vero_row(
            Row(config, "", f"<image>\nWhat is {number} of {config}?{options}", gold, kind), number
        )
        rows.append(made | {"image": {"bytes": picture(number % _PICTURES), "path": None}})
    return rows


def mmfinereason_rows(start: int, count: int) -> list[dict]:
    rows = []
    for number in range(start, start + count):
        gold = rf"\frac{{x+{number}}}{{2y}}" if number % 10 == 0 else ("C", "25 cm", str(number))[number % 3]
        row = Row(_SOURCES[number % 5], "", f"<image>What is {number}?", gold, (0.0, 0.5, 0.75)[number % 3])
        made = miniature.mmfinereason_row(row, number)
        rows.append(made | {"image": {"bytes": picture(number % _PICTURES), "path": None}})
    return rows


def write_corpora(directory: Path, rows: int) -> None:
    """Writes both corpora, a file at a time."""
    for config in _CONFIGS:
        each = rows // 2 // len(_CONFIGS)
        for part, start in enumerate(range(0, each, _FILE_ROWS)):
            table = miniature.vero_table(vero_rows(config, start, min(_FILE_ROWS, each - start)))
            miniature.write_table(directory / "vero" / config / f"train-{part:05d}-of-00000.parquet", table, 100)
    for part, start in enumerate(range(0, rows // 2, _FILE_ROWS)):
        table = miniature.mmfinereason_table(mmfinereason_rows(start, min(_FILE_ROWS, rows // 2 - start)))
        miniature.write_table(directory / "mmfinereason" / f"train-{part:05d}-of-00000.parquet", table, 100)


def tree(process: int) -> list[int]:
    """A process and all below it."""
    children = Path(f"/proc/{process}/task/{process}/children")
    try:
        return [process, *(one for child in children.read_text().split() for one in tree(int(child)))]
    except OSError:
        return []


def megabytes(process: int) -> float:
    """The proportional set size of a process."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


def measure(directory: Path, workers: int) -> dict:
    """Builds and measures once."""
    out = directory / "out"
    flags = [f"--vero={directory / 'vero'}", f"--mmfinereason={directory / 'mmfinereason'}", f"--out={out}"]
    flags += [f"--tokenizer={directory.parent / 'tokenizer'}", f"--workers={workers}", "--cap_tier1=10000000"]
    start, before = time.monotonic(), os.times()
    with (directory / "log.txt").open("w") as log:
        command = [sys.executable, "-m", "zppo_jax.data.zppo77k", *flags, "--cap_tier2=10000000"]
        running = subprocess.Popen(command, stdout=log, stderr=log)
        own = whole = 0.0
        while running.poll() is None:
            sizes = [megabytes(process) for process in tree(running.pid)]
            own, whole = max(own, sizes[0] if sizes else 0.0), max(whole, sum(sizes))
            time.sleep(0.5)
    if running.returncode:
        sys.exit((directory / "log.txt").read_text())
    seconds, after = time.monotonic() - start, os.times()
    manifest = json.loads((out / "dataset.json").read_text())
    read = sum(entry["read"] for entry in manifest["sub_datasets"].values())
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {
        "rows": read, "kept": manifest["num_questions"], "workers": workers, "seconds": round(seconds, 1),
        "rows_per_second": round(read / seconds), "cpu_seconds": round(cpu, 1),
        "rows_per_cpu_second": round(read / cpu), "command_megabytes": round(own), "all_megabytes": round(whole),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="10000,100000", help="sizes of the corpora")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="for corpora and output (3 GB for 100,000 rows, twice)")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp())
    tiny.processor().save(folder / "tokenizer")
    for rows in map(int, arguments.rows.split(",")):
        write_corpora(folder / str(rows), rows)
        print(json.dumps(measure(folder / str(rows), arguments.workers)), flush=True)
        shutil.rmtree(folder / str(rows))


if __name__ == "__main__":
    main()
