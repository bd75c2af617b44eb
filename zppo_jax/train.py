"""Training: Algorithm 1 of arXiv:2606.18216, one step after the other.

`train_step` is the algorithm; `Run` adds evaluation, checkpoints, records and stopping. With several hosts, each runs
this same program. A group is on one host; the outcomes of all groups are known to all hosts, and every decision is made
from them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from ml_collections import ConfigDict

from zppo_jax import evaluate, setup
from zppo_jax.command.heartbeat import Heartbeat
from zppo_jax.config import Config, binding, from_config_dict
from zppo_jax.data.pipeline import StepBatch
from zppo_jax.errors import RunError
from zppo_jax.run.checkpoint import placed_shapes
from zppo_jax.run.rows import read_metrics
from zppo_jax.run.saves import Saves
from zppo_jax.run.step import Step
from zppo_jax.run.stop import StopRequested
from zppo_jax.run.timers import Phase, PhaseTimers
from zppo_jax.run.watchdog import SkippedUpdates
from zppo_jax.setup import Components
from zppo_jax.update.programs import State
from zppo_jax.zppo import select


def train_step(parts: Components, state: State, batch: StepBatch, phase: Phase) -> tuple[State, Step]:
    """One step of Algorithm 1 of arXiv:2606.18216, numbered as there; the old state is donated."""
    step, seed, threshold = batch.step, parts.config.seed, parts.config.zppo.threshold
    with parts.student.rollouts(state["params"]) as student:
        # 1. Plain rollouts on new and replayed questions.
        with phase("rollout"):
            plain = student.cohort(batch.items, parts.random(step, "student"), watch=parts.ahead(batch))
        # 2. The hard questions, hardest first (the order of the pre-cap).
        hard = select.ranked(select.hard(plain.outcomes, threshold), parts.random(step, "pre_cap_ties"))
        # 3-4. The teacher answers; BCQ and NCQ prompts, built block by block of questions, fill the cap.
        listing = parts.helper.listing(plain, hard, parts.limit, seed, step)
        with phase("teacher"):
            kept, num_too_long = select.post_cap(listing, parts.limit)
        # 5. Fresh rollouts on them, under their own uids.
        with phase("reformulation"):
            items = parts.process.items_of(listing.prompts_of(kept))
        with phase("rollout"):
            helped = student.cohort(items, parts.random(step, "reformulated"), order=[prompt.uid for prompt in kept])
        sampled = student.counts()
    # 6. I updates on all groups, each response weighted by the method's credit; only plain groups refresh the buffer.
    learned = parts.learned_from(plain, helped, step, phase)
    with phase("update"):
        state, update = parts.learner.update(state, learned, parts.credit, seed=seed, step=step)
    replay: dict[str, int] = {}
    if parts.buffer is not None:
        refreshed = parts.buffer.refresh(select.plain_accuracies(plain.outcomes), step, threshold)
        replay = parts.buffer.counts(refreshed)
    counts = {"zppo/too_long": num_too_long, **listing.counts()}
    return state, Step(step, plain, hard, helped, counts, sampled, learned, update, replay, batch)


def run(config: Config | ConfigDict, workdir: Path | str, heartbeat: Heartbeat | None = None) -> State:
    """Trains from the newest checkpoint in `workdir`, or from the start, to `config.num_steps` or a request to stop;
    returns the state after the last step.

    `heartbeat` is the caller's, already beating, if it has one.
    """
    with Run.open(config, workdir, heartbeat) as training:
        for _ in training:
            pass
    return training.state


class Run:
    """A training run that can be stepped: `with Run.open(config, workdir) as run: for step in run: ...`.

    The order of a step is a contract: draw questions, step, evaluate, write records, save. A checkpoint is therefore
    the state after a whole step, and a run that continues from it equals one that was never interrupted. The end of the
    block saves what was not yet saved, also if the loop was left early.

    Attributes:
      parts: the parts of the run.
      state: parameters and optimiser after the last step.
      step: the number of steps made.
      done: whether the last step was made or the user wants the run to stop.
    """

    def __init__(self, opened: setup.Opened) -> None:
        self.parts, self.config, self.console = opened.components, opened.components.config, opened.console
        self.state, self.step, self.done = opened.take_state(), 0, False
        self._opened = opened
        self._timers = PhaseTimers(self.console.phase)
        self._saves = Saves(opened.checkpoints, self.console.message)
        self._skipped = SkippedUpdates(self.config.watchdog.max_skipped)
        self._broken = False
        self._accuracy: float | None = None  # of the evaluation after the last step, if there was one

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, config: Config | ConfigDict, workdir: Path | str, heartbeat: Heartbeat | None = None
    ) -> Iterator[Self]:
        """Opens a run directory, loads models and data and starts compiling; continues from the newest checkpoint, or
        evaluates the start. `config` may be what `get_config()` of a file in configs/ returns.

        Raises ConfigError and RunError, in one line, if the run cannot start.
        """
        config = from_config_dict(config) if isinstance(config, ConfigDict) else config
        with setup.open_run(config, Path(workdir), heartbeat) as opened:
            training = cls(opened)
            training._begin()
            try:
                yield training
                training._finish()
            finally:
                training.done = True  # its data and directory are closed

    def __iter__(self) -> Iterator[Step]:
        """Makes the remaining steps."""
        while not self.done:
            result = self.advance()
            if result is not None:
                yield result

    def advance(self) -> Step | None:
        """Makes one step; returns None if the run is done, or gives the step up because the user wants it to stop.

        A step that raises an error breaks the run, also if the error is caught: its questions are drawn and its state
        may be half updated. Every later call raises RunError, and the end of the block saves nothing.
        """
        if self.done:
            return None
        if self._broken:
            raise RunError("an earlier step failed: open the run again to continue from its newest checkpoint")
        self._broken = True
        result = self._advance()
        self._broken = False
        return result

    def _advance(self) -> Step | None:
        opened, before = self._opened, self.parts.stream.get_state()
        with opened.records.traced(self.step + 1):
            self.parts.begin(self.step + 1)
            with self._timers("data"):
                batch = next(self.parts.stream)
            try:
                with opened.stop.interruptible():
                    self.state, result = train_step(self.parts, self.state, batch, self._timers)
            except StopRequested:  # only rollouts have been made, and a resumed run makes the same again
                self.parts.stream.set_state(before)
                self.done = True
                return None
            self.step = batch.step
            evaluated = self._evaluate()
        self._write(result, evaluated)
        self._save()
        return result

    def _begin(self) -> None:
        """Restores the newest checkpoint; without one, evaluates the initial student."""
        try:
            if self._opened.checkpoints.latest_step is None:
                self.parts.begin(0)
                with self._opened.stop.interruptible():
                    row = self._evaluate()
                self._opened.records.write_row(0, row | self.parts.asked_metrics() | self._timers.flush())
                self.console.message(f"held-out accuracy before training {100 * row['eval/accuracy']:.1f} %")
            else:
                self._restore()
        except StopRequested:
            self.console.message("stopped before the first step: there was nothing to save")
            self.done = True
            return
        traced = self.config.profile.step
        if traced and not self.step < traced <= self.config.num_steps:
            self.console.message(f"no trace: step {traced} (profile.step) is not made, {self.step} have been")
        self.console.start_clock()
        self._timers.flush()
        self._accuracy = None
        self.done = self._ends()

    def _restore(self) -> None:
        """Restores the state. The initial one is freed first: the devices could not hold both."""
        shapes, self.state = placed_shapes(self.state), {}
        with self.console.heartbeat.during("restoring the checkpoint"):
            self.step, self.state, host = self._opened.checkpoints.restore(shapes, self.console.message)
        self.parts.stream.set_state(host["stream"])
        self.console.message(f"continuing after step {self.step}")

    def _evaluate(self) -> dict[str, Any]:
        """Runs the evaluators that are due; their values are metrics of the step."""
        found: dict[str, Any] = {}
        last = self.step in (0, self.config.num_steps)
        for evaluator in self.parts.evaluators:
            if last or self.step % evaluator.every == 0:
                with self._timers("eval"):
                    found |= evaluator.run(self.parts.student.sampling_params(self.state["params"]), self.step)
        self._accuracy = found.get("eval/accuracy")
        return found

    def _write(self, result: Step, evaluated: dict[str, Any]) -> None:
        self._saves.check()
        metrics, seconds = result.metrics() | evaluated, self._timers.flush()
        metrics |= self.parts.asked_metrics()
        metrics |= seconds | {"rollout/tokens_per_second": metrics["rollout/tokens"] / seconds["time/rollout"]}
        metrics |= {"checkpoint/failed": self._saves.failed, "time/agreement": self.parts.hosts.take_waited()}
        with self._timers("records"):
            self._opened.records.write_step(result, metrics)
            self.console.step(self.step, metrics)
            self._skipped.count(self.parts.learner.schedule.num_updates, result.update.skipped)

    def _save(self) -> None:
        """Saves if a checkpoint is due. A failed save does not end the run; too many skipped updates do."""
        self.done, alarmed = self._ends(), self._skipped.alarmed
        due = self.step % self.config.checkpoint.every == 0 or self._accuracy is not None
        if self.done:
            self.parts.student.release()
        with self._timers("checkpoint"):
            if due or self.done or alarmed:
                self._saves.save(self.step, self.state, self._host_values(), self._accuracy)
        if alarmed:
            self._saves.finish()
            self._skipped.check(self.step, self._opened.records.skipped_folder, self._opened.checkpoints.latest_step)

    def _report_scoring(self) -> None:
        """Reports how many comparisons and rewards of this host were given up or repeated, if any were."""
        for line in self.parts.student.actor.scorer.reports:
            self.console.message(line)

    def _host_values(self) -> dict[str, Any]:
        return {"stream": self.parts.stream.get_state(), "config": binding(self.config)}

    def _ends(self) -> bool:
        """Whether the loop ends after this step; called once per step. A request to one host stops all."""
        hosts, opened = self.parts.hosts, self._opened
        wanted = opened.stop.requested or (hosts.count > 1 and opened.checkpoints.reached_preemption(self.step))
        return self.step >= self.config.num_steps or any(hosts.gather(wanted, "the end of a step"))

    def _finish(self) -> None:
        """Saves what is not yet saved (a failure is now an error), and shows the results."""
        if self._broken:
            self.console.message("a step failed: what followed the newest checkpoint is not saved")
        if self.step == 0 or self._broken:
            return
        self.parts.student.release()
        self._saves.last(self.step, self.state, self._host_values(), self._accuracy)
        self._opened.records.finish()
        self._report_scoring()
        measured = self._accuracy is not None or self.step == self.config.num_steps
        if not measured:
            self.console.message(f"stopped after {self.step} steps; the accuracy is that of the last evaluation")
        if self.parts.hosts.leads:
            rows = read_metrics(self._opened.directory.metrics_file)
            tables = [table for row in rows if (table := evaluate.table(row))] or [{}]
            self.console.results(tables[0], tables[-1], f"after {self.step} steps" if measured else "last evaluated")
            self._opened.show_files()
