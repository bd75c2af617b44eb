"""Checks whether two revisions train the same model: python -m benchmarks.same_bits BASE [HEAD]

Runs `configs/tiny.py` at both revisions, eight steps of each method on one device and two steps of ZPPO on two
processes, and compares the results: metrics (except those of clock and memory), samples and the parameters in the
checkpoint. All must be equal to the bit. Names of metrics and fields of samples that only one revision has are listed
and not compared.

BASE and HEAD are git revisions; without HEAD it is the working tree. The runs of a commit are kept in --folder and
reused, those of a working tree are made again. Exit status 0 if all that both have is equal.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from tests import runs
from zppo_jax.run.metrics import depends_on_clock

ROOT = Path(__file__).parent.parent
METHODS = ("zppo", "grpo", "grpo_replay")
ONE_DEVICE = {"num_steps": 8, "eval.every": 8, "eval.num_questions": 128}
TWO_PROCESSES = {"num_steps": 2, "eval.every": 2, "eval.num_questions": 64, "checkpoint.every": 2}


def command(tree: Path, out: Path, method: str, changes: dict[str, Any], extra: list[str]) -> subprocess.Popen[bytes]:
    flags = [f"--config.{name}={value}" for name, value in changes.items()]
    words = [f"--config=configs/tiny.py:{method}", f"--workdir={out}", *flags, *extra]
    return subprocess.Popen(
        [sys.executable, "-m", "zppo_jax.main", *words],
        cwd=tree, env=os.environ | {"PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"},
        stdout=out.with_suffix(f".{len(extra) and extra[-1][-1]}.log").open("wb"), stderr=subprocess.STDOUT,
    )  # fmt: skip


def make_runs(tree: Path, folder: Path, names: list[str]) -> None:
    """Makes the runs of a revision that are not in its folder yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (folder / f"{name}.done").exists():
            continue
        print(f"running {name} of {tree}", flush=True)
        shutil.rmtree(folder / name, ignore_errors=True)
        if name == "two_processes":
            joined = [f"--coordinator=localhost:{runs.free_port()}", "--num_processes=2"]
            ids = [[*joined, f"--process_id={number}"] for number in range(2)]
            processes = [command(tree, folder / name, "zppo", TWO_PROCESSES, extra) for extra in ids]
        else:
            processes = [command(tree, folder / name, name, ONE_DEVICE, [])]
        if any([process.wait() for process in processes]):
            sys.exit(f"a run failed: see {folder}/{name}.*.log")
        (folder / f"{name}.done").touch()


@contextlib.contextmanager
def checked_out(revision: str) -> Iterator[tuple[Path, str]]:
    """The sources of a revision, and its name among the kept runs; "" stands for the working tree."""
    if not revision:
        yield ROOT, "working-tree"
        return
    commit = git("rev-parse", f"{revision}^{{commit}}")
    tree = (ROOT / git("rev-parse", "--git-common-dir") / "same-bits" / commit[:12]).resolve()
    git("worktree", "prune")
    if not tree.exists():
        git("worktree", "add", "--detach", str(tree), commit)
    try:
        yield tree, commit[:12]
    finally:
        git("worktree", "remove", "--force", str(tree))


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, text=True, capture_output=True).stdout.strip()


def rows(files: list[Path]) -> list[dict[str, Any]]:
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def equal(one: Any, other: Any) -> bool:
    both_nan = isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other)
    return one == other or both_nan


def differences(what: str, base: list[dict[str, Any]], head: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each value that differs, at most ten; and one for the names that only one side has."""
    if len(base) != len(head):
        yield f"DIFFERENT {what}: {len(base)} rows and {len(head)}"
        return
    wrong = [
        f"DIFFERENT {what} {number}, {name}: {str(one[name])[:80]} and {str(two[name])[:80]}"
        for number, (one, two) in enumerate(zip(base, head, strict=True))
        for name in sorted(one.keys() & two.keys())
        if not depends_on_clock(name) and not equal(one[name], two[name])
    ]
    yield from wrong[:10]
    alone = {name for one, two in zip(base, head, strict=True) for name in one.keys() ^ two.keys()}
    if alone - {name for name in alone if depends_on_clock(name)}:
        yield f"{what}: only one side has {', '.join(sorted(alone))}"


def parameters(run: Path) -> dict[str, np.ndarray]:
    """The parameters in the newest checkpoint, by path."""
    step = max(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdecimal())
    folder = run / "checkpoints" / str(step) / "state"
    with ocp.PyTreeCheckpointer() as reader:
        tree = jax.tree.map(lambda _: 0, reader.metadata(folder).item_metadata.tree)
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        state = reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    leaves = jax.tree_util.tree_leaves_with_path(state["params"])
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def compare(base: Path, head: Path) -> Iterator[str]:
    yield from differences("metrics row", *(rows([run / "metrics.jsonl"]) for run in (base, head)))
    samples = [
        sorted(rows([run / "samples.jsonl", *sorted(run.glob("hosts/*/samples.jsonl"))]), key=lambda row: row["uid"])
        for run in (base, head)
    ]
    yield from differences("sample", *samples)
    one, two = parameters(base), parameters(head)
    if one.keys() != two.keys():
        yield f"DIFFERENT parameters: only one side has {sorted(one.keys() ^ two.keys())[:5]}"
    wrong = [name for name in one.keys() & two.keys() if one[name].tobytes() != two[name].tobytes()]
    if wrong:
        yield f"DIFFERENT parameters: {len(wrong)} of {len(one)}, first {sorted(wrong)[0]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="the commit before")
    parser.add_argument("head", nargs="?", default="", help="the commit after; left out: the working tree")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/same-bits"), help="where runs are kept")
    parser.add_argument("--runs", default=",".join((*METHODS, "two_processes")), help="which runs, with commas")
    chosen = parser.parse_args()
    names, folders = chosen.runs.split(","), []
    for revision in (chosen.base, chosen.head):
        with checked_out(revision) as (tree, name):
            folders.append(chosen.folder / name)
            if not revision:
                shutil.rmtree(folders[-1], ignore_errors=True)
            make_runs(tree, folders[-1], names)
    failed = False
    for name in names:
        lines = list(compare(*(folder / name for folder in folders)))
        wrong = any(line.startswith("DIFFERENT") for line in lines)
        failed |= wrong
        print("\n".join([f"{name}: {'DIFFERENT' if wrong else 'equal to the bit'}", *(f"  {line}" for line in lines)]))
    sys.exit(failed)


if __name__ == "__main__":
    main()
