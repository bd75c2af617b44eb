"""The console of a run: what is compiling, the result of each step, the final accuracies, the files.

On a terminal the current step and any compilation are shown live at the bottom of the screen. Anywhere else (a file, a
pipe, a CI log) the same information is plain lines without control characters, and a heartbeat reports long phases.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import rich.box
import rich.console
import rich.progress
import rich.table
import rich.text

from zppo_jax.command.heartbeat import Heartbeat
from zppo_jax.run.metrics import METRICS

Result = tuple[float, float, float]
"""An accuracy with the lower and the upper end of its interval, all in [0, 1]."""

_FILES = {
    "config.json": "the configuration",
    "metrics.jsonl": "one row per step",
    "curves.png": "the same, drawn",
    "samples.jsonl": "one line per group: prompt, candidates, responses, rewards, advantages, lineage",
    "verdicts.sqlite": "the judge's verdicts",
    "tensorboard": "the metrics for `tensorboard --logdir`",
    "checkpoints": "the same command continues from the latest",
}


class RunConsole:
    """Reports one run: `with RunConsole(num_steps) as console: ...`.

    Args:
      num_steps: the number of steps of the whole run, for the time left.
      file: where to write; standard output by default.
      live: whether to draw on a terminal; detected from `file` by default.
      heartbeat: a heartbeat of the same file, if one is running already.
    """

    def __init__(
        self,
        num_steps: int,
        file: TextIO | None = None,
        live: bool | None = None,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        self._num_steps = num_steps
        target = sys.stdout if file is None else file
        self._live = target.isatty() if live is None else live
        self.heartbeat = heartbeat or Heartbeat(None if self._live else target)
        # Not a terminal: no width to fold at, no colours.
        self._console = rich.console.Console(
            file=target,
            force_terminal=self._live or None,
            width=None if self._live else 160,
            no_color=not self._live,
            highlight=False,
            soft_wrap=not self._live,
        )
        self._progress = rich.progress.Progress(
            rich.progress.SpinnerColumn(),
            rich.progress.TextColumn("{task.description}", table_column=rich.table.Column(no_wrap=False)),
            _CompileClock(),
            console=self._console,
            disable=not self._live,
            transient=True,
        )
        self._task: rich.progress.TaskID | None = None
        self._recent: deque[float] = deque(maxlen=20)
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        self.heartbeat.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.heartbeat.stop()
        self._progress.stop()

    def message(self, text: str) -> None:
        """Prints a line that stays."""
        self.heartbeat.heard()
        self._console.print(text, markup=False)

    @contextlib.contextmanager
    def compiling(self, program: str) -> Iterator[None]:
        """Shows that `program` is being compiled, for how long so far, and at the end how long it took."""
        start = time.monotonic()
        if self._live:
            task = self._progress.add_task(f"compiling {program}", compiling=True)
        else:
            task = None
            self.message(f"compiling {program} ...")
        try:
            with self.heartbeat.during(f"waiting for {program}"):
                yield
        finally:
            if task is not None:
                self._progress.remove_task(task)
        self.message(f"compiled {program} in {time.monotonic() - start:.1f} s")

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Marks a phase of a step, in a trace and on the screen."""
        import jax  # a command that computes nothing must not need it

        with jax.profiler.TraceAnnotation(name), self.heartbeat.during(name):
            yield

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Shows the result of a step; `metrics` are those of its row in metrics.jsonl."""
        now = time.monotonic()
        self._recent.append(now - self._last)
        self._last = now
        # The median: a step that compiled or evaluated does not predict the next ones.
        left = statistics.median(self._recent) * (self._num_steps - step)
        line = step_line(step, self._num_steps, metrics, left)
        if self._live:
            self.status(line)
        else:
            self.message(line)

    def status(self, line: str) -> None:
        """Shows a status line in place of the last one; without a terminal only if the phase takes long."""
        if not self._live:
            self.heartbeat.detail(line)
            return
        if self._task is None:
            self._task = self._progress.add_task(line)
        else:
            self._progress.update(self._task, description=line)

    def start_clock(self) -> None:
        """Marks the beginning of the first step, so that the time before it does not count."""
        self._last = time.monotonic()

    def results(self, before: Mapping[str, Result], after: Mapping[str, Result], when: str) -> None:
        """Prints the final table: held-out accuracy by level, before and after training.

        Args:
          before: the accuracy before training, by level; the order is kept.
          after: the same after training.
          when: when the second was measured, such as "after 240 steps".
        """
        self._progress.stop()  # nothing is running any more
        box = rich.box.SIMPLE if self._live else rich.box.ASCII2
        table = rich.table.Table(
            title="held-out accuracy in %, and its interval of 95 %", title_justify="left", box=box
        )
        table.add_column("level")
        for name in ("before", when, "change"):
            table.add_column(name, justify="right")
        for level in [*before, *(level for level in after if level not in before)]:
            table.add_row(rich.text.Text(level), *_result_cells(before.get(level), after.get(level)))
        self._console.print(table)

    def files(self, workdir: Path | str) -> None:
        """Lists the existing files of the run, with their contents in words."""
        self.message(f"files in {workdir}")
        for name, meaning in _FILES.items():
            if (Path(workdir) / name).exists():
                self.message(f"  {name:<14} {meaning}")


class _CompileClock(rich.progress.TimeElapsedColumn):
    """The time since a compilation began; empty next to the line of a step, which has its own clock."""

    def render(self, task: rich.progress.Task) -> rich.text.Text:
        return super().render(task) if task.fields.get("compiling") else rich.text.Text()


def step_line(step: int, num_steps: int, metrics: Mapping[str, Any], seconds_left: float) -> str:
    """The progress line of a step, with the columns of METRICS; a value that the step does not have is a dash.

    Warnings come last: prompts longer than every bucket, rollouts that the scorer could not decide.
    """
    shown = (one.console.format(_value(metrics.get(one.name), one.unit)) for one in METRICS if one.console)
    warnings = (
        f"{one.warning} {_count(metrics[one.name])}" for one in METRICS if one.warning and metrics.get(one.name)
    )
    place = f"step {step:>{len(str(num_steps))}}/{num_steps}"
    return "  ".join((place, *shown, f"{_duration(seconds_left)} left", *warnings))


def _value(value: Any, unit: str) -> str:
    return _percent(value) if unit == "share" else _count(value)


def _result_cells(before: Result | None, after: Result | None) -> list[str]:
    change = f"{100 * (after[0] - before[0]):+.1f}" if before and after else "-"
    return [_result(before), _result(after), change]


def _result(result: Result | None) -> str:
    if result is None:
        return "-"
    accuracy, low, high = (f"{100 * value:.1f}" for value in result)
    return f"{accuracy} ({low} to {high})"


def _percent(value: Any) -> str:
    return "   - " if value is None or not math.isfinite(value) else f"{100 * value:3.0f} %"


def _count(value: Any) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.0f}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
