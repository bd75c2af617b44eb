"""The records of a run for its users, step by step.

With several hosts the first one writes the metrics, which cover all; each writes its own samples.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from zppo_jax.config import Config
from zppo_jax.data.reading import Skipped
from zppo_jax.errors import WorkdirError
from zppo_jax.parallel import Hosts
from zppo_jax.run.directory import RunDirectory
from zppo_jax.run.metrics_file import MetricsWriter
from zppo_jax.run.rows import append, cut, json_line
from zppo_jax.run.samples import SampleWriter, sample_row
from zppo_jax.run.step import Step
from zppo_jax.types import Group


class Records:
    """The files of a run directory, cut back to the restored step at the start."""

    def __init__(
        self, directory: RunDirectory, config: Config, step: int | None, hosts: Hosts, report: Callable[[str], None]
    ) -> None:
        self.skipped_folder, self._folder = directory.host_folder / "skipped", directory.host_folder
        self._report = report
        self._waiting: list[Callable[[], None]] = []
        self._profile_folder, self._traced_step = directory.host_folder / "profile", config.profile.step
        self._metrics = MetricsWriter(directory.path, config.log.tensorboard) if hosts.leads else None
        limits = (config.log.samples_max_megabytes, config.log.samples_keep)
        self._samples, kept = SampleWriter(directory.host_folder, *limits), -1 if step is None else step
        if self._metrics is not None:
            last = self._metrics.truncate(kept)
            if last < kept:
                report(
                    f"!! {directory.metrics_file} ends before step {kept}, with which the run continues: rows are lost"
                )
            for folder in directory.path.glob("hosts/*"):
                if folder.name.isdecimal() and int(folder.name) >= hosts.count:  # the run is continued with fewer hosts
                    SampleWriter(folder, *limits).truncate(kept)
        self._samples.truncate(kept)
        cut(self.skipped_folder / "questions.jsonl", kept)

    def write_step(self, step: Step, metrics: dict[str, Any]) -> None:
        """Writes a row of metrics, a line for each of this host's groups, and what was skipped: questions, and the
        groups of updates. If a write fails, that is reported, and the data waits for the next step."""
        if self._metrics is not None:
            self._waiting.append(functools.partial(self._metrics.write, step.number, metrics))
        advantages = step.advantages
        for group in step.groups:
            advantages_G = advantages.get(group.prompt.uid)
            self._waiting.append(functools.partial(self._samples.write, step.number, group, advantages_G))
        if step.batch.skipped:
            self._report(f"!! {self._left_out(step.number, step.batch.skipped)}")
        for number, groups in step.skipped.items():
            file = self._skipped(step.number, number, groups, advantages)
            self._report(f"!! update {number + 1} of step {step.number} was not finite and is skipped: {file}")
        problem = self.flush()
        if problem:
            self._report(f"!! {problem}: free some space. Training goes on; what is not written waits")

    def write_row(self, step: int, metrics: dict[str, Any]) -> None:
        """Writes a row of metrics. Raises WorkdirError if it cannot be written."""
        if self._metrics is not None:
            self._waiting.append(functools.partial(self._metrics.write, step, metrics))
        self.finish()

    def _left_out(self, step: int, skipped: Sequence[Skipped]) -> str:
        """Writes the questions that were left out of a step; returns a line for the user."""
        file = self.skipped_folder / "questions.jsonl"
        lines = [json_line({"step": step, **dataclasses.asdict(one)}) for one in skipped]

        def write() -> None:
            file.parent.mkdir(exist_ok=True)
            append(file, b"".join(lines))

        self._waiting.append(write)
        first = f"first {skipped[0].question_id} ({skipped[0].reason})"
        return f"{len(skipped)} questions of step {step} cannot be used, {first}: {file}"

    def _skipped(self, step: int, number: int, groups: Sequence[Group], advantages: dict[str, Any]) -> str:
        """Writes the groups of skipped update `number` (from 0), tokens and logprobs included; returns the file."""
        file = self.skipped_folder / f"step-{step}-update-{number + 1}.jsonl"

        def write() -> None:
            file.parent.mkdir(exist_ok=True)
            rows = (_whole_sample(step, group, advantages[group.prompt.uid]) for group in groups)
            file.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))

        self._waiting.append(write)
        return str(file)

    def flush(self) -> str:
        """Writes the waiting data, in order. Returns the reason if something cannot be written, which then waits for
        the next call; else ""."""
        while self._waiting:
            try:
                self._waiting[0]()
            except OSError as error:
                return f"{error.filename or self._folder}: {error.strerror}"
            del self._waiting[0]
        return ""

    def finish(self) -> None:
        """Writes the waiting data; raises WorkdirError if something still cannot be written."""
        problem = self.flush()
        if problem:
            raise WorkdirError(
                f"{problem}; the last {len(self._waiting)} lines of metrics and samples are lost: free some space"
            )

    @contextlib.contextmanager
    def traced(self, step: int) -> Iterator[None]:
        """Traces the block if `step` is `profile.step`: for Perfetto and XProf."""
        if step != self._traced_step:
            yield
            return
        with (
            jax.profiler.trace(self._profile_folder, create_perfetto_trace=True),
            jax.profiler.StepTraceAnnotation("step", step_num=step),
        ):
            yield

    def close(self) -> None:
        """Writes the waiting data of a run that failed, as far as possible."""
        try:
            self.flush()
        finally:
            if self._metrics is not None:
                self._metrics.close()


def _whole_sample(step: int, group: Group, advantages_G: Any) -> dict[str, Any]:
    return sample_row(step, group, advantages_G) | {
        "prompt_token_ids": group.features.token_ids_T.tolist(),
        "token_ids": [rollout.token_ids_T.tolist() for rollout in group.rollouts],
        # As text, because a log-probability may not be finite.
        "logprobs": [[str(value) for value in rollout.logprobs_T.tolist()] for rollout in group.rollouts],
    }
