"""Two steps of configs/one_gpu.py by the real command, on made-up questions, with random models.

    python -m benchmarks.on_gpu.run [--small] [--teacher=0.8B] [--seconds=205] [--config.KEY=VALUE ...]

A line for each step with its phases, and a line with the exit status. The student has the shape of 0.8B; the teacher
too, because a random 9B takes a minute to write and read (--teacher=9B). All prompts are of one length, so that fewer
programs are compiled. Responses end at a stop token, after 170 tokens on average.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.on_gpu import measuring, questions

ROOT = Path(__file__).parent.parent.parent

WHOLE = {
    "num_steps": "2",
    "data.num_questions": "128",
    "eval.num_questions": "16",
    "prompt.buckets": "4608",
    "reward.function": "benchmarks.on_gpu.questions:parity",
}
"""What differs from the configuration's values: so many questions that two steps are one pass."""

SMALL = WHOLE | {
    "data.num_questions": "16",
    "eval.num_questions": "4",
    "prompt.buckets": "192",
    "prompt.template": "compact",
    "prompt.min_pixels": "1024",
    "prompt.max_pixels": "4096",
    "rollout.questions_per_step": "8",
    "rollout.group_size": "3",
    "rollout.max_new_tokens": "16",
    "rollout.slots": "12",
    "rollout.chunk": "8",
    "teacher.num_rollouts": "2",
    "teacher.compress.max_tokens": "8",
    "update.num_minibatches": "1",
    "update.row_tokens": "208",
    "reward.num_workers": "1",
}
"""The same for a CPU, with the models that the package ships as shapes."""

PHASES = ("data", "rollout", "teacher", "reformulation", "update", "eval", "checkpoint", "step")
VALUES = {
    "tokens_per_second": "rollout/tokens_per_second",
    "update_tokens": "update/tokens",
    "mismatch_kl": "update/mismatch_kl",
    "bcq_groups": "zppo/bcq_groups",
    "ncq_groups": "zppo/ncq_groups",
    "peak_gib": "memory/peak_gib",
}


def command(folder: Path, changes: dict[str, str], others: list[str]) -> list[str]:
    """The command line of the run on what benchmarks.on_gpu.questions wrote into `folder`."""
    places = {"data.source": f"parquet:{folder / 'questions'}", "model.path": str(folder / "student")}
    places |= {"teacher.path": str(folder / "teacher")}
    flags = [f"--config.{name}={value}" for name, value in (changes | places).items()]
    config = ROOT / "configs" / "one_gpu.py"
    return [sys.executable, "-m", "zppo_jax.main", f"--config={config}", f"--workdir={folder / 'run'}", *flags, *others]


def lines_of(workdir: Path) -> list[dict[str, Any]]:
    """What the run's metrics say of its steps."""
    file = workdir / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    found = []
    for row in rows:
        seconds = {phase: row[f"time/{phase}"] for phase in PHASES if row.get(f"time/{phase}") is not None}
        found.append(
            {"step": row["step"], "seconds": seconds}
            | {name: row[key] for name, key in VALUES.items() if row.get(key) is not None}
        )
    return found


def run(folder: Path, words: list[str], seconds: float) -> dict[str, Any]:
    """Runs the command for at most `seconds`: how it ended, and the last line of what it said if not well."""
    with open(folder / "log", "w") as log:
        try:
            status = subprocess.run(words, cwd=ROOT, stdout=log, stderr=log, timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            return {"measured": False, "why": f"it took longer than {seconds:g} s: {_last(folder / 'log')}"}
    return {"status": status} | ({"measured": False, "why": _last(folder / "log")} if status else {})


def _last(file: Path) -> str:
    lines = [line for line in file.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def options_of(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the words that are for the run's command."""
    parser = measuring.parser(__doc__)
    parser.add_argument("--teacher", default="0.8B", help="a published size")
    parser.add_argument("--seconds", type=float, default=205.0, help="most time of the run itself")
    return parser.parse_known_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options, others = options_of(arguments)
    scale = "small" if options.small else "whole"
    with tempfile.TemporaryDirectory(prefix="zppo-run-") as name:
        folder = Path(name)
        # In another process, which gives the device's memory back; this one must not touch the device at all.
        made = [sys.executable, "-m", "benchmarks.on_gpu.questions", name, "0.8B", options.teacher, scale]
        status = subprocess.run(made, cwd=ROOT).returncode
        if status == questions.NO_DEVICE:
            return
        if status:
            raise RuntimeError(f"the questions and models were not written (status {status})")
        ended = run(folder, command(folder, SMALL if options.small else WHOLE, others), options.seconds)
        for line in lines_of(folder / "run"):
            print(json.dumps({"case": "step", "small": options.small} | measuring.rounded(line)), flush=True)
        print(json.dumps({"case": "run", "small": options.small, "teacher": options.teacher} | ended), flush=True)


if __name__ == "__main__":
    main()
