"""Training: Algorithm 1 of arXiv:2606.18216, one step after the other.

`train_step` is the algorithm; `run` is what surrounds it: evaluation, checkpoints, records, stopping. The order of a
step is a contract: draw questions, step, evaluate, write records, save. A checkpoint is therefore the state after a
whole step, and a run that continues from it is the run that was never interrupted.

Over several hosts each runs this very program. A group is one host's; the outcomes of all are known to all
(agreement.py), and every decision is taken from them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from zppo_jax import agreement, compilation, parallel, setup
from zppo_jax.augmentation import augment
from zppo_jax.config import Config, binding
from zppo_jax.data.pipeline import Item, StepBatch
from zppo_jax.evaluate import Evaluation, evaluate
from zppo_jax.report import draw_curves
from zppo_jax.rollout.requests import Draw
from zppo_jax.run import saved
from zppo_jax.run.checkpoint import Checkpoints
from zppo_jax.run.console import RunConsole
from zppo_jax.run.directory import RunDirectory
from zppo_jax.run.heartbeat import Heartbeat
from zppo_jax.run.quiet import tell_failures_once
from zppo_jax.run.records import Records, buffer_metrics, step_metrics
from zppo_jax.run.stop import StopRequest, StopRequested
from zppo_jax.run.timers import PhaseTimers
from zppo_jax.run.watchdog import FailedSaves, SkippedUpdates
from zppo_jax.setup import Job
from zppo_jax.types import Group
from zppo_jax.update.step import State
from zppo_jax.warmstart import directories
from zppo_jax.zppo import select


@dataclasses.dataclass(frozen=True)
class Step:
    """What a step leaves: this host's groups, the advantages [G] of each by uid, the row of metrics, and the groups of
    each update that was skipped, by its number."""

    groups: list[Group]
    advantages: dict[str, Any]
    metrics: dict[str, Any]
    skipped: dict[int, list[Group]]


def train_step(job: Job, state: State, batch: StepBatch, timers: PhaseTimers) -> tuple[State, Step]:
    """One step of Algorithm 1."""
    config, hosts, step, seed = job.config, job.hosts, batch.step, job.config.seed
    job.student.engine.statistics.take()  # what the evaluation did

    def roll_out(items: list[Item], purpose: str) -> list[Group]:
        params, size = job.sampled_from(state), config.rollout.group_size
        return job.student.answer(params, items, size, job.sampling, Draw(seed, step, purpose))

    # 1. Plain rollouts on new and replayed questions.
    with timers("rollout"):
        groups = roll_out([*batch.new, *batch.replayed], "student")
    with timers("agreement"):
        plain = agreement.plain_outcomes(hosts, groups)

    # 2-4. The hard questions, hardest first; the teacher answers them; BCQ and NCQ prompts until the cap is full.
    hard = select.hard(plain, config.zppo.threshold)
    added = augment(job, groups, hard, step, timers)

    # 5. Fresh rollouts on them, under uids of their own.
    with timers("rollout"):
        reformulated = roll_out(added.items, "reformulated")
    groups += reformulated
    with timers("agreement"):
        augmented = agreement.augmented_outcomes(hosts, reformulated, added.uids)
        done = agreement.statistics(hosts, job.student.engine.statistics.take())

    # 6. I updates on all groups; the buffer learns from the plain rollouts alone.
    job.release()
    with timers("update"):
        everyone = [*plain, *augmented]
        state, advantages_PG, updates, skipped = job.learner.update(
            state, groups, seed=seed, step=step, everyone=everyone
        )
    metrics = step_metrics(plain, hard, augmented, done) | {f"update/{name}": value for name, value in updates.items()}
    metrics |= added.counts
    if job.buffer is not None:
        refreshed = job.buffer.refresh(select.plain_accuracies(plain), step, config.zppo.threshold)
        metrics |= buffer_metrics(job.buffer, refreshed)
    own = {group.prompt.uid: group for group in groups}
    advantages = {outcome.uid: row for outcome, row in zip(everyone, advantages_PG, strict=True)}
    lost = {number: [own[everyone[p].uid] for p in part if everyone[p].uid in own] for number, part in skipped.items()}
    return state, Step(groups, advantages, metrics, lost)


# ---------------------------------------------------------------- what surrounds the algorithm


def run(config: Config, workdir: Path, heartbeat: Heartbeat | None = None) -> None:
    """Train from the newest checkpoint in `workdir`, or from the start, to `config.num_steps` or a request to stop.

    `heartbeat` beats already, where the caller has one.
    """
    compilation.use_cache()
    with (heartbeat or Heartbeat()).during("finding the devices"):
        compilation.keep_memory()
        tell_failures_once()
        hosts = setup.find_hosts(config)
    with contextlib.ExitStack() as stack:
        with hosts.together("opening the run directory"):
            directory = stack.enter_context(RunDirectory(workdir, hosts.index))
            if hosts.leads:
                step, values = saved.newest(directory.checkpoints)
                directory.accept(config, step, values.get("config"))
        kept = (config.checkpoint.keep, config.checkpoint.keep_best)
        directory.require_shared(hosts.gather(directory.mark, "the marks of the run directory"))
        checkpoints = stack.enter_context(Checkpoints(directory.checkpoints, *kept, hosts))
        stack.enter_context(hosts.watched())
        stop = stack.enter_context(StopRequest())
        elsewhere = None if hosts.leads else stack.enter_context(open(os.devnull, "w"))
        beat = heartbeat if hosts.leads else Heartbeat()
        console = stack.enter_context(RunConsole(config.num_steps, elsewhere, heartbeat=beat))
        with hosts.together("loading the models"), console.heartbeat.during("making the models, data and programs"):
            student, teacher = directories(config, directory.path, console.message)
            mesh = setup.make_mesh(config)
            stack.enter_context(parallel.use(mesh))
            compiler = stack.enter_context(compilation.compiler(console.compiling, mesh))
            own, sampler = setup.own_mesh(config, mesh), compiler
            if own is not mesh:
                sampler = stack.enter_context(compilation.compiler(console.compiling, own))
            for each in {compiler, sampler}:
                console.heartbeat.watch(each.standing)
            report = stop.checked(console.status) if hosts.count == 1 else console.status
            job, state = setup.build(config, student, teacher, compiler, report, hosts, sampler, console.heartbeat)
        stack.callback(job.close)
        for line in setup.describe_mesh(config, mesh, state["params"], job.learner.config, hosts):
            console.message(line)
        with hosts.together("opening the records"):
            records = Records(directory, config, checkpoints.latest_step, hosts, console.message)
        stack.callback(records.close)
        try:
            _loop(job, state, checkpoints, records, console, stop)
        except StopRequested:
            console.message("stopped before the first step: there was nothing to save")
            return
        if hosts.leads:
            try:
                draw_curves(directory.path)
            except ValueError as error:
                console.message(f"no curves: {error}")
            console.files(directory.path)


def _loop(
    job: Job, state: State, checkpoints: Checkpoints, records: Records, console: RunConsole, stop: StopRequest
) -> None:
    config = job.config
    step, state, first, last = _begin(job, state, checkpoints, records, console, stop)
    saves, watch = FailedSaves(console.message), SkippedUpdates(config.watchdog.max_skipped)

    def save(accuracy: float | None = None) -> None:
        host = {"stream": job.stream.get_state(), "first": first.to_json(), "last": last.to_json()}
        checkpoints.save(step, state, host | {"config": binding(config)}, accuracy)

    def ends() -> bool:
        """Asked once a step: whatever ends the loop has saved. What one host is told, all do."""
        wanted = stop.requested or (job.hosts.count > 1 and checkpoints.reached_preemption(step))
        return step >= config.num_steps or any(job.hosts.gather(wanted, "the end of a step"))

    if config.profile.step and not step < config.profile.step <= config.num_steps:
        console.message(f"no trace: step {config.profile.step} (profile.step) is not made, {step} have been")
    console.start_clock()
    evaluated = False
    timers, done = PhaseTimers(functools.partial(_phase, console.heartbeat)), ends()
    while not done:
        before = job.stream.get_state()
        with records.traced(step + 1):
            with timers("data"):
                batch = next(job.stream)
            try:
                with stop.heeded():
                    state, result = train_step(job, state, batch, timers)
            except StopRequested:  # nothing but rollouts has happened yet, and the same are made again
                job.stream.set_state(before)
                break
            step, metrics = batch.step, result.metrics
            evaluated = step % config.eval.every == 0 or step == config.num_steps
            if evaluated:
                last = _evaluate(job, state, step, timers)
                metrics |= last.metrics()
        saves.attempt(checkpoints.check)
        seconds = timers.flush()
        metrics |= seconds | {"rollout/tokens_per_second": metrics["rollout/tokens"] / seconds["time/rollout"]}
        metrics["checkpoint/failed"] = saves.total
        with timers("records"):
            records.write(step, metrics, result.groups, result.advantages)
            console.step(step, metrics)
            for number, groups in result.skipped.items():
                file = records.skipped(step, number, groups, result.advantages)
                console.message(f"!! update {number + 1} of step {step} was not finite and is skipped: {file}")
            problem = records.flush()
            if problem:
                console.message(f"!! {problem}: free some space. Training goes on; what is not written waits")
            watch.count(job.learner.num_updates, result.skipped)
        with timers("agreement"):
            done = ends()
        with timers("checkpoint"):
            if step % config.checkpoint.every == 0 or evaluated or done or watch.alarmed:
                saves.attempt(checkpoints.finish)  # of the one before
                saves.attempt(functools.partial(save, last.overall.accuracy if evaluated else None))
        if watch.alarmed:
            saves.attempt(checkpoints.finish)
            watch.check(step, records.skipped_folder, checkpoints.latest_step)
    saves.attempt(checkpoints.finish)
    if step > 0:
        # What is saved already is left alone. Now a failure is an error.
        save(last.overall.accuracy if evaluated else None)
        checkpoints.finish()
        records.finish()
    measured = evaluated or step == config.num_steps
    if not measured:
        console.message(f"stopped after {step} steps; the accuracy is that of the last evaluation")
    console.results(first.table(), last.table(), f"after {step} steps" if measured else "last evaluated")


def _begin(
    job: Job, state: State, checkpoints: Checkpoints, records: Records, console: RunConsole, stop: StopRequest
) -> tuple[int, State, Evaluation, Evaluation]:
    """The newest checkpoint, or the start and its evaluation: (step, state, first evaluation, last evaluation)."""
    if checkpoints.latest_step is None:
        timers = PhaseTimers(functools.partial(_phase, console.heartbeat))
        with stop.heeded():
            first = _evaluate(job, state, 0, timers)
        records.write(0, first.metrics() | timers.flush())
        records.finish()
        console.message(f"held-out accuracy before training {100 * first.overall.accuracy:.1f} %")
        return 0, state, first, first
    with console.heartbeat.during("restoring the checkpoint"):
        step, state, host = checkpoints.restore(state, console.message)
    job.stream.set_state(host["stream"])
    console.message(f"continuing after step {step}")
    return step, state, Evaluation.from_json(host["first"]), Evaluation.from_json(host["last"])


@contextlib.contextmanager
def _phase(heartbeat: Heartbeat, name: str) -> Iterator[None]:
    """A phase of a step, for a trace and for whoever waits."""
    with jax.profiler.TraceAnnotation(name), heartbeat.during(name):
        yield


def _evaluate(job: Job, state: State, step: int, timers: PhaseTimers) -> Evaluation:
    with timers("eval"):
        params, seed = job.sampled_from(state), job.config.seed
        found = evaluate(job.evaluator, params, job.held_out, job.evaluation, seed=seed, step=step, hosts=job.hosts)
        job.student.engine.vision.release()  # nobody asks about these images again before the next update
        return found
