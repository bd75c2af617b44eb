"""Seconds of the update of configs/tiny.py for several shapes of rows, on rollouts of the run itself.

    python -m benchmarks.update_tiny [ROW_TOKENS:PROMPTS_PER_ROW:ROWS ...] [--steps=4] [--rounds=3] [--cores=0]

One JSON line per shape, the configuration's first: median CPU and wall seconds of `Learner.update` over all recorded
steps, the number of rows, and the share of their slots that holds tokens. The steps are the run's first ones, so most
questions are hard and most groups have no gradient, as in a run.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import worker

KINDS = ("cpu", "wall")


def record(config: Any, compiler: Any, directory: Path, num_steps: int) -> tuple[Any, Any, list[Any]]:
    """Makes the first steps of the run; returns (the run's parts, state after them, cohort of each step)."""
    from zppo_jax import setup
    from zppo_jax.run.timers import PhaseTimers
    from zppo_jax.train import train_step
    from zppo_jax.warmstart import directories

    student, teacher = directories(config, directory)
    job, state = setup.build(config, student, teacher, compiler)
    recorded = []
    for _ in range(num_steps):
        state, step = train_step(job, state, next(job.stream), PhaseTimers())
        recorded.append(step.learned)
    return job, state, recorded


def fill(learner: Any, credit: Any, recorded: list[Any]) -> dict[str, float]:
    """The rows that the two mini-batches of a step compute, and how full they are."""
    from zppo_jax.update import batch, rows

    num_rows = tokens = 0
    for cohort in recorded:
        groups = cohort.groups
        parts = batch.split(len(groups), learner.schedule.num_minibatches, 0, 0, 0)
        weights_PG = credit(cohort.outcomes, parts)
        for part in parts:
            placed = rows.arrange(groups, batch.with_gradient(part.tolist(), weights_PG), learner.shapes)
            num_rows += -(-len(placed) // learner.shapes.num_rows) * learner.shapes.num_rows
            for group, rollouts in (one for row in placed for one in row):
                tokens += groups[group].features.num_tokens - 1
                tokens += sum(len(groups[group].rollouts[rollout].token_ids_T) for rollout in rollouts)
    share = tokens / max(num_rows * learner.shapes.num_tokens, 1)
    return {"rows": num_rows / len(recorded), "filled": round(share, 3)}


def updates(learner: Any, credit: Any, params: Any, recorded: list[Any]) -> None:
    """Makes the updates of all recorded steps, from the same parameters."""
    import jax

    state = learner.init(jax.tree.map(lambda x: x.copy(), params))
    for step, cohort in enumerate(recorded):
        state, _ = learner.update(state, cohort, credit, seed=0, step=step)
    jax.block_until_ready(state)


def measure(
    learners: Sequence[Any], credit: Any, params: Any, recorded: list[Any], num_rounds: int
) -> list[dict[str, float]]:
    """Median seconds of a step's update with each learner, in turns; the first round compiles and does not count."""
    for learner in learners:
        updates(learner, credit, params, recorded)
    rounds = [
        [worker.timed(functools.partial(updates, learner, credit, params, recorded))[1] for learner in learners]
        for _ in range(num_rounds)
    ]
    return [
        {f"{kind}_seconds": round(statistics.median(one[kind] for one in turns) / len(recorded), 4) for kind in KINDS}
        for turns in zip(*rounds, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", metavar="ROW_TOKENS:PROMPTS_PER_ROW:ROWS")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", default="0", help="such as 0 or 0,1")
    options = parser.parse_args()
    chosen = [tuple(int(size) for size in shape.split(":")) for shape in options.shapes]
    worker.pin([int(core) for core in options.cores.split(",")])
    from configs import tiny
    from zppo_jax import compilation
    from zppo_jax.config import from_config_dict
    from zppo_jax.update import rows

    compilation.keep_memory()
    config = from_config_dict(tiny.get_config())
    update = config.update
    chosen.insert(0, (update.row_tokens, update.prompts_per_row, update.rows_per_microbatch))
    with tempfile.TemporaryDirectory() as directory:
        job, state, recorded = record(config, compilation.Compiler(), Path(directory), options.steps)
        job.close()
    sizes = job.student.actor.engine.shapes
    learners = []
    for row_tokens, prompts, num_rows in chosen:
        shapes = rows.shapes(num_rows, row_tokens, prompts, sizes.buckets[-1], sizes.max_new_tokens, sizes.patch_slots)
        learners.append(dataclasses.replace(job.learner, shapes=shapes, compiler=compilation.Compiler()))
    measured = measure(learners, job.credit, state["params"], recorded, options.rounds)
    for learner, seconds in zip(learners, measured, strict=True):
        print(
            json.dumps(dataclasses.asdict(learner.shapes) | seconds | fill(learner, job.credit, recorded)), flush=True
        )


if __name__ == "__main__":
    main()
