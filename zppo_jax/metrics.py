"""What a run writes down: metrics.jsonl and TensorBoard (a row a step), samples.jsonl (a line a group), phase times.

Each line is written at once and is strict JSON. On resuming, everything after the restored step is cut away, so that
a run that was killed and continued leaves the same files as one that was not.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from zppo_jax.rows import append, cut, json_line, read_metrics
from zppo_jax.types import Group

SCHEMA = (
    "rollout/accuracy",
    "rollout/new_accuracy",
    "rollout/hard_fraction",
    "rollout/new_hard_fraction",
    "rollout/undecided",
    "rollout/tokens_per_second",
    "rollout/occupancy",
    "rollout/longest",
    "rollout/truncated_fraction",
    "replay/size",
    "replay/graduated",
    "replay/evicted",
    "replay/graduated_total",
    "replay/evicted_total",
    "zppo/bcq_groups",
    "zppo/ncq_groups",
    "zppo/bcq_accuracy",
    "zppo/ncq_accuracy",
    "zppo/too_long",
    "compress/summaries",
    "compress/refused",
    "update/loss",
    "update/clip_fraction",
    "update/mismatch_kl",
    "update/grad_norm",
    "update/nonzero_group_fraction",
    "update/skipped",
    "eval/accuracy",
    "eval/standard_error",
    "eval/undecided",
    "eval/wilson_low",
    "eval/wilson_high",
    "time/data",
    "time/rollout",
    "time/agreement",
    "time/teacher",
    "time/reformulation",
    "time/update",
    "time/records",
    "time/checkpoint",
    "time/unaccounted",
    "time/step",
    "checkpoint/failed",
)
"""The names that every row of metrics.jsonl has beside `step`; null where the step has no such value."""


def depends_on_clock(name: str) -> bool:
    """Whether a metric may differ between two runs of the same seed."""
    return name.startswith(("time/", "memory/")) or "per_second" in name


class MetricsWriter:
    """Writes `metrics.jsonl` and, if wanted, TensorBoard events to the run directory."""

    def __init__(self, workdir: Path | str, tensorboard: bool = True) -> None:
        self._file = Path(workdir) / "metrics.jsonl"
        self._events = _Events(Path(workdir) / "tensorboard") if tensorboard else None

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one row; names of `SCHEMA` that are not given, and values that are not finite, become null."""
        row = {"step": int(step), **dict.fromkeys(SCHEMA), **{name: _scalar(value) for name, value in values.items()}}
        append(self._file, json_line(row))
        if self._events is not None:
            with contextlib.suppress(OSError):  # made anew of the rows when the run is continued
                self._events.write(row)

    def truncate(self, step: int) -> int:
        """Cuts metrics and events back to rows of at most `step`, and returns the last one's; -1 empties them, for a
        run without a checkpoint. Raises WorkdirError, and cuts nothing, where a line is damaged."""
        rows = [row for row in read_metrics(self._file) if row["step"] <= step]
        cut(self._file, step)
        if self._events is not None:
            self._events.rebuild(rows)
        return max((row["step"] for row in rows), default=-1)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


class SampleWriter:
    """Writes `samples.jsonl`, a line a group with its lineage, in files of bounded size and number.

    A full file becomes `samples.1.jsonl`, that one `samples.2.jsonl` and so on; beyond `keep` they are deleted. When
    to rotate depends on the lines alone, never on the clock.
    """

    def __init__(self, workdir: Path | str, max_megabytes: float, keep: int) -> None:
        self._file = Path(workdir) / "samples.jsonl"
        self._max_bytes = int(max_megabytes * 1e6)
        self._keep = keep

    def write(self, step: int, group: Group, advantages_G: np.ndarray | Sequence[float]) -> None:
        """Appends one group; `advantages_G` are those that entered the loss."""
        line = json_line(sample_row(step, group, advantages_G))
        size = self._file.stat().st_size if self._file.exists() else 0
        if size > 0 and size + len(line) > self._max_bytes:
            self._rotate()
        append(self._file, line)

    def truncate(self, step: int) -> None:
        """Cuts current and rotated files back to lines of at most `step`, and undoes rotations that came later. Raises
        WorkdirError where a line is damaged."""
        for file in self.files():
            cut(file, step)
        remaining = [file for file in self.files() if file.stat().st_size > 0]
        for file in self.files():
            if file not in remaining:
                file.unlink()
        for number, file in enumerate(remaining):
            file.replace(self._rotated(number))

    def files(self) -> list[Path]:
        """The sample files there are, newest first."""
        numbered = (self._rotated(number) for number in range(self._keep + 1))
        return [file for file in numbered if file.exists()]

    def _rotated(self, number: int) -> Path:
        return self._file if number == 0 else self._file.with_name(f"samples.{number}.jsonl")

    def _rotate(self) -> None:
        self._rotated(self._keep).unlink(missing_ok=True)
        for number in reversed(range(self._keep)):
            if self._rotated(number).exists():
                self._rotated(number).replace(self._rotated(number + 1))


class PhaseTimers:
    """Seconds spent in each phase of a step: `with timers("rollout"): ...`, then `flush()` once a step.

    A step lasts from one flush to the next, so what follows the row of a step (writing it, the checkpoint) counts for
    the next one; phases do not overlap. `annotate` is told the name of each phase, for a trace.
    """

    def __init__(self, annotate: Callable[[str], AbstractContextManager[Any]] = contextlib.nullcontext) -> None:
        self._annotate = annotate
        self._seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            with self._annotate(phase):
                yield
        finally:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - start

    def flush(self) -> dict[str, float]:
        """The seconds since the last flush as metrics, {"time/rollout": 1.2, ...}, with those of the whole step and
        those that no phase accounts for; the clocks start anew."""
        seconds, self._seconds = self._seconds, {}
        start, self._start = self._start, time.perf_counter()
        whole = self._start - start
        rest = {"unaccounted": whole - sum(seconds.values()), "step": whole}
        return {f"time/{phase}": value for phase, value in (seconds | rest).items()}


class _Events:
    """TensorBoard events, rebuilt from the rows on resuming: an event file itself cannot be cut.

    tensorboardX's own SummaryWriter hands events to a thread, and what that has not written is lost with the process;
    the writer underneath it is used here, so that a row is on disk when `write` returns.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer: Any = None

    def write(self, row: Mapping[str, Any]) -> None:
        self._add(row)
        self._writer.flush()

    def rebuild(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.close()
        for file in self._directory.glob("events*"):  # the folder stays: it may be a link to another disk
            file.unlink()
        for row in rows:
            self._add(row)
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _add(self, row: Mapping[str, Any]) -> None:
        # Imported here: it takes a second, and not every run writes events.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        if self._writer is None:
            self._directory.mkdir(exist_ok=True)
            self._writer = EventsWriter(str(self._directory / "events"))
        values = {name: value for name, value in row.items() if name != "step" and value is not None}
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._writer.write_event(Event(wall_time=time.time(), step=row["step"], summary=summary))


def _scalar(value: Any) -> float | int | bool | None:
    """A JSON number from a Python, NumPy or JAX scalar; None when there is none or it is not finite."""
    if value is None:
        return None
    number = np.asarray(value).item()
    return number if math.isfinite(number) else None


def sample_row(step: int, group: Group, advantages_G: np.ndarray | Sequence[float]) -> dict[str, Any]:
    """The line of a group in samples.jsonl."""
    prompt = group.prompt
    return {
        "step": int(step),
        "question_id": prompt.question.id,
        "kind": prompt.kind,
        "uid": prompt.uid,
        "parent": prompt.parent,
        "prompt": prompt.text,
        "gold": prompt.question.answer,
        "responses": [rollout.text for rollout in group.rollouts],
        "rewards": [float(one.correct) if one.decided else None for one in group.rollouts],
        "statuses": [one.status for one in group.rollouts],
        "advantages": [_scalar(advantage) for advantage in advantages_G],
    }
