"""What a run writes for people, step by step, and how the numbers of a step come about.

Over several hosts the first one writes the metrics, which are those of all; each writes the samples that it has.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from zppo_jax.config import Config
from zppo_jax.errors import WorkdirError
from zppo_jax.parallel import Hosts
from zppo_jax.rewards import Status
from zppo_jax.rollout.statistics import Statistics
from zppo_jax.run.directory import RunDirectory
from zppo_jax.run.metrics import MetricsWriter
from zppo_jax.run.samples import SampleWriter, sample_row
from zppo_jax.types import Group, Outcome
from zppo_jax.zppo import Refresh, ReplayBuffer


class Records:
    """The files of a run directory, cut back to the restored step at the start."""

    def __init__(
        self, directory: RunDirectory, config: Config, step: int | None, hosts: Hosts, tell: Callable[[str], None]
    ) -> None:
        self.skipped_folder, self._folder = directory.own / "skipped", directory.own
        self._waiting: list[Callable[[], None]] = []
        self._profile_folder, self._traced_step = directory.own / "profile", config.profile.step
        self._metrics = MetricsWriter(directory.path, config.log.tensorboard) if hosts.leads else None
        limits = (config.log.samples_max_megabytes, config.log.samples_keep)
        self._samples, kept = SampleWriter(directory.own, *limits), -1 if step is None else step
        if self._metrics is not None:
            last = self._metrics.truncate(kept)
            if last < kept:
                tell(
                    f"!! {directory.metrics_file} ends before step {kept}, with which the run continues: rows are lost"
                )
            for folder in directory.path.glob("hosts/*"):
                if folder.name.isdecimal() and int(folder.name) >= hosts.count:  # of a run continued with fewer
                    SampleWriter(folder, *limits).truncate(kept)
        self._samples.truncate(kept)

    def write(
        self,
        step: int,
        metrics: dict[str, Any],
        groups: Sequence[Group] = (),
        advantages: dict[str, Any] | None = None,
    ) -> None:
        """Takes a row of metrics, and a line for each of this host's groups, to be written by `flush`; `advantages` are
        [G] by uid."""
        if self._metrics is not None:
            self._waiting.append(functools.partial(self._metrics.write, step, metrics))
        for group in groups:
            advantages_G = (advantages or {})[group.prompt.uid]
            self._waiting.append(functools.partial(self._samples.write, step, group, advantages_G))

    def skipped(self, step: int, number: int, groups: Sequence[Group], advantages: dict[str, Any]) -> str:
        """What update `number` (from 0) was to learn from, tokens and log-probabilities too; the file."""
        file = self.skipped_folder / f"step-{step}-update-{number + 1}.jsonl"

        def write() -> None:
            file.parent.mkdir(exist_ok=True)
            rows = (_whole_sample(step, group, advantages[group.prompt.uid]) for group in groups)
            file.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))

        self._waiting.append(write)
        return str(file)

    def flush(self) -> str:
        """Writes what waits, in order; why something cannot be written, "" where all is. It waits for the next call."""
        while self._waiting:
            try:
                self._waiting[0]()
            except OSError as error:
                return f"{error.filename or self._folder}: {error.strerror}"
            del self._waiting[0]
        return ""

    def finish(self) -> None:
        """Raises WorkdirError where something cannot be written to the last."""
        problem = self.flush()
        if problem:
            raise WorkdirError(
                f"{problem}; the last {len(self._waiting)} lines of metrics and samples are lost: free some space"
            )

    @contextlib.contextmanager
    def traced(self, step: int) -> Iterator[None]:
        """Traces what is done meanwhile where it is the step that `profile.step` names: for Perfetto and XProf."""
        if step != self._traced_step:
            yield
            return
        with (
            jax.profiler.trace(self._profile_folder, create_perfetto_trace=True),
            jax.profiler.StepTraceAnnotation("step", step_num=step),
        ):
            yield

    def close(self) -> None:
        self.flush()  # of a run that failed, as far as it can be written
        if self._metrics is not None:
            self._metrics.close()


def _whole_sample(step: int, group: Group, advantages_G: Any) -> dict[str, Any]:
    return sample_row(step, group, advantages_G) | {
        "prompt_token_ids": group.features.token_ids_T.tolist(),
        "token_ids": [rollout.token_ids_T.tolist() for rollout in group.rollouts],
        # As text, because a log-probability may be what is not finite.
        "logprobs": [[str(value) for value in rollout.logprobs_T.tolist()] for rollout in group.rollouts],
    }


def step_metrics(
    plain: Sequence[Outcome], hard: Sequence[Outcome], augmented: Sequence[Outcome], done: Statistics
) -> dict[str, Any]:
    """What the outcomes of a step's groups say, as named in metrics.SCHEMA.

    `rollout/accuracy` and `rollout/hard_fraction` are of all plain groups, replayed questions included, which are
    harder than new ones: methods with and without a buffer are compared by `rollout/new_accuracy` and
    `rollout/new_hard_fraction`. Groups with an undecided rollout have no accuracy.
    """
    everything = [*plain, *augmented]
    num_rollouts = sum(len(outcome.correct) for outcome in everything)
    new, hard_uids = [outcome for outcome in plain if outcome.kind == "plain"], {outcome.uid for outcome in hard}
    statuses = collections.Counter(status for outcome in everything for status in outcome.statuses)
    metrics: dict[str, Any] = {
        "rollout/accuracy": _accuracy(plain),
        "rollout/new_accuracy": _accuracy(new),
        "rollout/hard_fraction": _share(plain, hard_uids),
        "rollout/new_hard_fraction": _share(new, hard_uids),
        "rollout/undecided": sum(outcome.num_undecided for outcome in everything),
        **{f"reward/{status}": statuses[status] for status in Status},
        "rollout/tokens": sum(outcome.num_tokens for outcome in everything),
        "rollout/truncated_fraction": sum(outcome.num_truncated for outcome in everything) / num_rollouts,
        "rollout/occupancy": done.occupancy,
        "rollout/longest": done.longest,
    }
    for kind in ("replay", "bcq", "ncq"):
        groups = [outcome for outcome in everything if outcome.kind == kind]
        prefix = "replay/" if kind == "replay" else f"zppo/{kind}_"
        metrics[f"{prefix}groups"] = len(groups)
        metrics[f"{prefix}accuracy"] = _accuracy(groups)
    return metrics


def _share(outcomes: Sequence[Outcome], uids: Collection[str]) -> float | None:
    """Of the decided groups those with these uids; None without any."""
    decided = [outcome for outcome in outcomes if outcome.decided]
    return sum(outcome.uid in uids for outcome in decided) / len(decided) if decided else None


def _accuracy(outcomes: Sequence[Outcome]) -> float | None:
    """Mean over the decided groups; None without any."""
    accuracies = [outcome.accuracy for outcome in outcomes if outcome.decided]
    return float(np.mean(accuracies)) if accuracies else None


def buffer_metrics(buffer: ReplayBuffer, refreshed: Refresh) -> dict[str, Any]:
    """What a refresh of the replay buffer did."""
    return {
        "replay/size": len(buffer),
        "replay/admitted": len(refreshed.admitted),
        "replay/graduated": len(refreshed.graduated),
        "replay/evicted": len(refreshed.evicted),
        "replay/graduated_total": buffer.graduated_total,
        "replay/evicted_total": buffer.evicted_total,
    }
