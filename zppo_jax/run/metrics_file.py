"""metrics.jsonl and TensorBoard: one row per step.

Each line is written at once and is strict JSON. On resuming, everything after the restored step is cut off, so that a
run that was killed and continued leaves the same files as one that was not.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zppo_jax.run.metrics import SCHEMA
from zppo_jax.run.rows import append, cut, json_line, read_metrics, scalar


class MetricsWriter:
    """Writes `metrics.jsonl` and, if wanted, TensorBoard events to the run directory."""

    def __init__(self, workdir: Path | str, tensorboard: bool = True) -> None:
        self._file = Path(workdir) / "metrics.jsonl"
        self._events = _Events(Path(workdir) / "tensorboard") if tensorboard else None

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one row; names of `SCHEMA` that are missing, and values that are not finite, become null."""
        row = {"step": int(step), **dict.fromkeys(SCHEMA), **{name: scalar(value) for name, value in values.items()}}
        append(self._file, json_line(row))
        if self._events is not None:
            with contextlib.suppress(OSError):  # rebuilt from the rows when the run is continued
                self._events.write(row)

    def truncate(self, step: int) -> int:
        """Cuts metrics and events back to rows of at most `step`, and returns the step of the last row; -1 empties
        them, for a run without a checkpoint. Raises WorkdirError, and cuts nothing, if a line is damaged."""
        rows = [row for row in read_metrics(self._file) if row["step"] <= step]
        cut(self._file, step)
        if self._events is not None:
            self._events.rebuild(rows)
        return max((row["step"] for row in rows), default=-1)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """An import finds no torch meanwhile: tensorboardX loads it where it can (seconds, and 300 MB), and numbers do not
    need it."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]  # which Python documents as "not there"
    try:
        yield
    finally:
        if hidden:
            del sys.modules["torch"]


class _Events:
    """TensorBoard events, rebuilt from the rows on resuming: an event file itself cannot be cut.

    tensorboardX's SummaryWriter writes events in a thread, and events not yet written are lost with the process. The
    writer underneath it is used here, so that a row is on disk when `write` returns.
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
        # Imported here, because not every run writes events.
        with _without_torch():
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
            from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        if self._writer is None:
            self._directory.mkdir(exist_ok=True)
            self._writer = EventsWriter(str(self._directory / "events"))
        values = {name: value for name, value in row.items() if name != "step" and value is not None}
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._writer.write_event(Event(wall_time=time.time(), step=row["step"], summary=summary))
