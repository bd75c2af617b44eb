"""Training: Algorithm 1 of arXiv:2606.18216, one step after the other.

`train_step` is the algorithm; `run` is what surrounds it: evaluation, checkpoints, records, stopping. The order of a
step is a contract: draw questions, step, evaluate, write records, save. A checkpoint is therefore the state after a
whole step, and a run that continues from it is the run that was never interrupted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zppo_jax import compilation, parallel, setup
from zppo_jax.checkpoint import Checkpoints
from zppo_jax.config import Config
from zppo_jax.console import RunConsole
from zppo_jax.data.pipeline import Item, StepBatch
from zppo_jax.evaluate import Evaluation, evaluate
from zppo_jax.metrics import MetricsWriter, PhaseTimers, SampleWriter
from zppo_jax.report import draw_curves
from zppo_jax.rollout.requests import Draw
from zppo_jax.setup import Job
from zppo_jax.types import Group
from zppo_jax.update.step import State
from zppo_jax.warmstart import directories
from zppo_jax.workdir import RunDirectory, StopRequest, StopRequested
from zppo_jax.zppo import choose_candidates, select
from zppo_jax.zppo.reformulate import build_prompts


def train_step(
    job: Job, state: State, batch: StepBatch, timers: PhaseTimers
) -> tuple[State, list[Group], np.ndarray, dict[str, Any]]:
    """One step. Returns the new state, all groups of the step, their advantages [P, G] and the row of metrics."""
    config, step, seed = job.config, batch.step, job.config.seed

    job.student.engine.statistics.take()  # what the evaluation did

    def roll_out(items: list[Item], purpose: str) -> list[Group]:
        size = config.rollout.group_size
        return job.student.answer(state["params"], items, size, job.sampling, Draw(seed, step, purpose))

    # 1. Plain rollouts on new and replayed questions.
    with timers("rollout"):
        plain = roll_out([*batch.new, *batch.replayed], "student")

    # 2-3. The hard questions, hardest first, as many as the cap lets in; the teacher answers them.
    hard = select.hard(plain, config.zppo.threshold)
    chosen = select.pre_cap(hard, job.augmentation_limit, seed, step)

    # 4-5. BCQ and NCQ prompts under uids of their own, BCQ first when the cap cuts; fresh rollouts on them.
    with timers("teacher"):
        prompts = select.post_cap(_reformulated(job, chosen, hard, step), job.augmentation_limit)
    with timers("rollout"):
        items = job.process.items_of(prompts)
        fitting = [item for item in items if job.student.engine.shapes.holds(item.features)]
        augmented = roll_out(fitting, "reformulated")

    # 6. I updates on all groups; the buffer learns from the plain rollouts alone.
    groups = [*plain, *augmented]
    job.student.engine.held.release()
    with timers("update"):
        state, advantages_PG, update_metrics = job.learner.update(state, groups, seed=seed, step=step)
    refreshed = None
    if job.buffer is not None:
        refreshed = job.buffer.refresh(select.plain_accuracies(plain), step, config.zppo.threshold)

    metrics = _metrics(job, plain, hard, augmented, refreshed) | {f"update/{k}": v for k, v in update_metrics.items()}
    metrics["zppo/too_long"] = len(items) - len(fitting)  # never cut short: a prompt that no bucket holds is left out
    return state, groups, advantages_PG, metrics


def _reformulated(job: Job, chosen: list[Group], hard: list[Group], step: int) -> list[list[Any]]:
    """The prompts of each chosen question: teacher rollouts, candidates, compression, templates."""
    if job.teacher is None or not chosen:
        return []
    seed, names = job.config.seed, job.method.reformulations
    asked = (hard if job.config.teacher.scope == "all_hard" else chosen) if job.method.needs_teacher else []
    answers = job.teacher.answer([Item(group.prompt, group.features) for group in asked], seed=seed, step=step)
    rollouts = {group.prompt.uid: group.rollouts for group in answers}
    choices = [choose_candidates(group, rollouts.get(group.prompt.uid, ()), names, seed, step) for group in chosen]
    needed = [candidate for choice in choices for candidate in choice.needed]
    summaries = job.teacher.compress(needed, seed=seed, step=step)
    return [build_prompts(choice, summaries.__getitem__, job.template) for choice in choices]


def _metrics(job: Job, plain: list[Group], hard: list[Group], augmented: list[Group], refreshed: Any) -> dict[str, Any]:
    """What the step's groups say, as named in metrics.SCHEMA."""
    rollouts = [rollout for group in [*plain, *augmented] for rollout in group.rollouts]
    metrics: dict[str, Any] = {
        "rollout/accuracy": np.mean([group.accuracy for group in plain]),
        "rollout/hard_fraction": len(hard) / len(plain),
        "rollout/tokens": sum(len(rollout.token_ids_T) for rollout in rollouts),
        "rollout/truncated_fraction": np.mean([rollout.finish_reason == "length" for rollout in rollouts]),
    }
    done = job.student.engine.statistics.take()
    metrics |= {"rollout/occupancy": done.occupancy, "rollout/longest": done.longest}
    for kind in ("replay", "bcq", "ncq"):
        accuracies = [group.accuracy for group in [*plain, *augmented] if group.prompt.kind == kind]
        prefix = "replay/" if kind == "replay" else f"zppo/{kind}_"
        metrics[f"{prefix}groups"] = len(accuracies)
        metrics[f"{prefix}accuracy"] = np.mean(accuracies) if accuracies else None
    if job.buffer is not None and refreshed is not None:
        metrics |= {
            "replay/size": len(job.buffer),
            "replay/admitted": len(refreshed.admitted),
            "replay/graduated": len(refreshed.graduated),
            "replay/evicted": len(refreshed.evicted),
            "replay/graduated_total": job.buffer.graduated_total,
            "replay/evicted_total": job.buffer.evicted_total,
        }
    return metrics


# ---------------------------------------------------------------- what surrounds the algorithm


class Records:
    """Everything a run writes for people, cut back to the restored step at the start."""

    def __init__(self, directory: RunDirectory, config: Config, step: int | None) -> None:
        self._metrics = MetricsWriter(directory.path, config.log.tensorboard)
        self._samples = SampleWriter(directory.path, config.log.samples_max_megabytes, config.log.samples_keep)
        self._metrics.truncate(-1 if step is None else step)
        self._samples.truncate(-1 if step is None else step)

    def write(self, step: int, metrics: dict[str, Any], groups: Sequence[Group] = (), advantages_PG: Any = ()) -> None:
        self._metrics.write(step, metrics)
        for group, advantages_G in zip(groups, advantages_PG, strict=True):
            self._samples.write(step, group, advantages_G)

    def close(self) -> None:
        self._metrics.close()


def run(config: Config, workdir: Path) -> None:
    """Train from the newest checkpoint in `workdir`, or from the start, to `config.num_steps` or a request to stop."""
    compilation.use_cache()
    compilation.keep_memory()
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(RunDirectory(workdir))
        checkpoints = Checkpoints(directory.checkpoints, config.checkpoint.keep)
        stack.callback(checkpoints.close)
        directory.accept(config, restored_step=checkpoints.latest_step or 0)
        stop = stack.enter_context(StopRequest())
        console = stack.enter_context(RunConsole(config.num_steps))
        student, teacher = directories(config, directory.path, console.message)
        mesh = setup.make_mesh(config)
        stack.enter_context(parallel.use(mesh))
        compiler = stack.enter_context(compilation.compiler(console.compiling, mesh))
        job, state = setup.build(config, student, teacher, compiler, stop.checked(console.status))
        num_rows = config.update.rows_per_microbatch
        for line in setup.describe_mesh(mesh, state["params"], job.learner.config, num_rows):
            console.message(line)
        stack.callback(job.close)
        records = Records(directory, config, checkpoints.latest_step)
        stack.callback(records.close)
        try:
            _loop(job, state, checkpoints, records, console, stop)
        except StopRequested:
            console.message("stopped before the first step: there was nothing to save")
            return
        draw_curves(directory.path)
        console.files(directory.path)


def _loop(
    job: Job, state: State, checkpoints: Checkpoints, records: Records, console: RunConsole, stop: StopRequest
) -> None:
    config, timers = job.config, PhaseTimers()
    step, state, first, last = _begin(job, state, checkpoints, records, console, stop)

    def save(stream: dict[str, Any]) -> None:
        checkpoints.save(step, state, {"stream": stream, "first": first.to_json(), "last": last.to_json()})

    console.start_clock()
    done = step >= config.num_steps or stop.requested
    while not done:
        with timers("step"):
            with timers("data"):
                before, batch = job.stream.get_state(), next(job.stream)
            try:
                with stop.heeded():
                    state, groups, advantages_PG, metrics = train_step(job, state, batch, timers)
            except StopRequested:  # nothing but rollouts has happened yet, and the same are made again
                save(before)
                break
            step = batch.step
            if step % config.eval.every == 0 or step == config.num_steps:
                last = _evaluate(job, state, step, timers)
                metrics |= last.metrics()
        seconds = timers.flush()
        metrics |= seconds | {"rollout/tokens_per_second": metrics["rollout/tokens"] / seconds["time/rollout"]}
        records.write(step, metrics, groups, advantages_PG)
        console.step(step, metrics)
        done = step >= config.num_steps or stop.requested  # asked once: whatever ends the loop has saved
        if step % config.checkpoint.every == 0 or done:
            save(job.stream.get_state())
    console.results(first.table(), last.table(), step)


def _begin(
    job: Job, state: State, checkpoints: Checkpoints, records: Records, console: RunConsole, stop: StopRequest
) -> tuple[int, State, Evaluation, Evaluation]:
    """The newest checkpoint, or the start and its evaluation: (step, state, first evaluation, last evaluation)."""
    if checkpoints.latest_step is None:
        timers = PhaseTimers()
        with stop.heeded():
            first = _evaluate(job, state, 0, timers)
        records.write(0, first.metrics() | timers.flush())
        console.message(f"held-out accuracy before training {100 * first.overall[0]:.1f} %")
        return 0, state, first, first
    step, state, host = checkpoints.restore(state)
    job.stream.set_state(host["stream"])
    console.message(f"continuing after step {step}")
    return step, state, Evaluation.from_json(host["first"]), Evaluation.from_json(host["last"])


def _evaluate(job: Job, state: State, step: int, timers: PhaseTimers) -> Evaluation:
    with timers("eval"):
        temperature, seed = job.config.eval.temperature, job.config.seed
        return evaluate(job.student, state["params"], job.held_out, temperature, seed=seed, step=step)
