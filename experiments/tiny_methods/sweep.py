"""Runs the tiny configuration with several methods and seeds, two processes at a time, and prints the table.

    python experiments/tiny_methods/sweep.py --out=runs/tiny_methods --methods=grpo,grpo_replay,zppo --seeds=0,1,2
    python experiments/tiny_methods/sweep.py --out=runs/rates --methods=grpo_replay --seeds=0 --rates=2e-4,4e-4,8e-4

A finished run is not repeated, an unfinished one continues.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(out: Path, method: str, seed: int, rate: str, extra: list[str], core: int) -> Path:
    workdir = out / f"{method}-{rate or 'default'}-{seed}"
    command = [sys.executable, "-m", "zppo_jax.main", f"--config=configs/tiny.py:{method}", f"--workdir={workdir}"]
    command += [f"--config.seed={seed}", *extra]
    command += [f"--config.optimizer.learning_rate={rate}"] if rate else []
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "log.txt").open("a") as log:
        affinity = {core % (os.cpu_count() or 1)}
        subprocess.run(
            command, cwd=ROOT, stdout=log, stderr=log, check=True, preexec_fn=lambda: os.sched_setaffinity(0, affinity)
        )
    return workdir


def final(workdir: Path) -> dict[str, float]:
    """The final mean accuracy over hidden and taught levels, and the metrics of the buffer and the prompts."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    last = next(row for row in reversed(rows) if row["eval/accuracy"] is not None)
    levels = {name.split("/", 2)[2]: value for name, value in last.items() if name.startswith("eval/accuracy/")}

    def mean(family: str) -> float:
        return statistics.fmean(value for level, value in levels.items() if level.startswith(family))

    return {
        "all": last["eval/accuracy"],
        "hidden": mean("hidden"),
        "taught": mean("taught"),
        "graduated": float(rows[-1]["replay/graduated_total"] or 0),
        "evicted": float(rows[-1]["replay/evicted_total"] or 0),
        "minutes": sum(row["time/step"] or 0.0 for row in rows) / 60,
    }


def cell(values: list[float]) -> str:
    """The mean +- standard error over seeds."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{statistics.fmean(values):.3f} +- {error:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", default="grpo,grpo_replay,zppo")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rates", default="")
    parser.add_argument("--processes", type=int, default=2)
    arguments, extra = parser.parse_known_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    pairs = list(itertools.product(arguments.rates.split(","), arguments.methods.split(",")))
    grid = [(rate, method, seed) for rate, method in pairs for seed in seeds]
    with ThreadPoolExecutor(arguments.processes) as pool:
        jobs = {
            (rate, method, seed): pool.submit(run, arguments.out.absolute(), method, seed, rate, extra, index)
            for index, (rate, method, seed) in enumerate(grid)
        }
        workdirs = {key: job.result() for key, job in jobs.items()}
    print("| method | rate | " + " | ".join(final(next(iter(workdirs.values())))) + " |")
    print("|---" * 8 + "|")
    for rate, method in pairs:
        results = [final(workdirs[rate, method, seed]) for seed in seeds]
        cells = [cell([result[name] for result in results]) for name in results[0]]
        print(f"| {method} | {rate or 'default'} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
