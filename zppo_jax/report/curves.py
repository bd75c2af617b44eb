"""curves.png: one picture of a run, drawn from its metrics.jsonl.

A value that a step did not measure (null) is left out of the line, and a panel without any value says so. The picture
is drawn with the Agg canvas directly, without pyplot: this needs no display and changes no global state of a notebook.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from zppo_jax.run.metrics import METRICS, Metric
from zppo_jax.run.rows import read_metrics

Rows = Sequence[Mapping[str, Any]]
Panel = Callable[[Axes, Rows], None]


_BLUE, _ORANGE, _GREEN, _RED, _PURPLE, _GREY = "#2563a8", "#d9751f", "#2e8b57", "#b8383d", "#7a52a3", "#777777"
_OF_HELP = (_GREEN, _ORANGE, _PURPLE, _RED)


def draw_curves(workdir: Path | str) -> Path:
    """Draws `workdir/curves.png` from `workdir/metrics.jsonl` and returns its path.

    Raises:
      ValueError: if there is no row to draw.
    """
    workdir = Path(workdir)
    rows = read_metrics(workdir / "metrics.jsonl")
    if not rows:
        raise ValueError(f"{workdir / 'metrics.jsonl'} holds no row: there is nothing to draw before the first step")
    figure = Figure(figsize=(15, 11), layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15))
    FigureCanvasAgg(figure)
    figure.suptitle(f"{workdir.resolve().name}, {rows[-1]['step']} steps", fontsize=15, fontweight="bold")
    axes = figure.subplots(3, 3)
    for axis, panel in zip(axes.flat, _PANELS, strict=True):
        panel(axis, rows)
    target = workdir / "curves.png"
    figure.savefig(target, dpi=110)
    return target


def series(rows: Rows, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [N] and values [N] of a metric where it is not null."""
    pairs = [(row["step"], row[metric]) for row in rows if row.get(metric) is not None]
    return np.asarray([step for step, _ in pairs], np.int64), np.asarray([value for _, value in pairs], np.float64)


def running_mean(values_N: np.ndarray, window: int) -> np.ndarray:
    """Mean of each value with the `window - 1` before it (fewer at the start), [N]."""
    sums = np.concatenate([[0.0], np.cumsum(values_N)])
    ends = np.arange(1, len(values_N) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _lines(
    axis: Axes,
    rows: Rows,
    *,
    panel: str,
    title: str,
    unit: str,
    colours: Sequence[str],
    smooth: bool = False,
    scale: float = 1.0,
    **options: Any,
) -> None:
    """Draws the metrics of a panel as lines over the steps; `smooth` adds the running mean and fades the values;
    `scale` multiplies them."""
    metrics = (metric for metric in METRICS if metric.panel == panel)
    for metric, colour in zip(metrics, itertools.cycle(colours), strict=False):
        _draw_line(axis, rows, metric, colour, smooth, scale)
    _finish(axis, title, unit, rows, **options)


def _draw_line(axis: Axes, rows: Rows, metric: Metric, colour: str, smooth: bool, scale: float) -> None:
    steps_N, values_N = series(rows, metric.name)
    values_N = values_N * scale
    if not len(steps_N):
        return
    window = max(1, len(steps_N) // 12)
    smooth = smooth and window > 1
    marker = "o" if len(steps_N) < 4 else None
    axis.plot(steps_N, values_N, color=colour, linewidth=0.8 if smooth else 1.6, alpha=0.35 if smooth else 1,
              marker=marker, markersize=3, label=None if smooth else metric.label)  # fmt: skip
    if smooth:
        axis.plot(steps_N, running_mean(values_N, window), color=colour, linewidth=1.8, label=metric.label)


def _evaluation(axis: Axes, rows: Rows) -> None:
    """Draws the held-out accuracy: all questions with their interval of 95 %, and each level."""
    levels = list(dict.fromkeys(name for row in rows for name in row if name.startswith("eval/accuracy/")))
    palette = (_ORANGE, _GREEN, _PURPLE, _RED, _GREY, "#3aa6b9", "#a88b2d", "#5c6f2f")
    for number, name in enumerate(levels):
        steps_N, values_N = series(rows, name)
        label = name.removeprefix("eval/accuracy/")
        axis.plot(steps_N, 100 * values_N, "o-", color=palette[number % len(palette)], markersize=3, linewidth=1,
                  alpha=0.8, label=label)  # fmt: skip
    measured = [row for row in rows if row.get("eval/accuracy") is not None]
    if measured:
        steps_N, values_N = series(measured, "eval/accuracy")
        ends_2N = np.asarray([[row.get(f"eval/wilson_{end}") for row in measured] for end in ("low", "high")], float)
        errors_2N = np.abs(ends_2N - values_N)  # NaN in rows of earlier versions, which draws no bars
        axis.errorbar(steps_N, 100 * values_N, 100 * errors_2N, fmt="s-", color=_BLUE, capsize=3, markersize=4,
                      linewidth=2, label="all, and its interval of 95 %")  # fmt: skip
    _finish(axis, "Held-out accuracy", "%", rows, bottom=0, top=100)


def _times(axis: Axes, rows: Rows) -> None:
    """Draws the seconds of a step: its phases stacked, and the rest on top."""
    timed = [row for row in rows if row.get("time/step") is not None]
    names = [one.name for one in METRICS if one.panel == "time" and one.label and series(timed, one.name)[0].size]
    if timed:
        steps_N = np.asarray([row["step"] for row in timed])
        parts_KN = np.asarray([[row.get(name) or 0.0 for row in timed] for name in names]).reshape(-1, len(timed))
        rest_N = np.maximum(series(timed, "time/step")[1] - parts_KN.sum(0), 0)
        labels = [*(name.removeprefix("time/") for name in names), "rest"]
        colours = {"rollout": _BLUE, "teacher": _GREEN, "update": _ORANGE, "rest": "#cccccc"}
        axis.stackplot(steps_N, *parts_KN, rest_N, labels=labels, colors=[colours[label] for label in labels])
        # Steps that compile take so long that they would flatten all others.
        axis.set_ylim(0, 1.3 * float(np.percentile(series(timed, "time/step")[1], 95)) or 1.0)
    _finish(axis, "Time of a step", "seconds", rows, bottom=0)


def _finish(
    axis: Axes, title: str, unit: str, rows: Rows, bottom: float | None = None, top: float | None = None,
    log: bool = False,
) -> None:  # fmt: skip
    """Adds title, units and grid, and the legend below the panel, where it hides no data."""
    axis.set_title(title, loc="left", fontsize=12, fontweight="bold")
    axis.set_xlabel("step")
    axis.set_ylabel(unit)
    axis.set_xlim(0, max(rows[-1]["step"], 1))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axis.get_legend_handles_labels()
    if not handles:
        axis.text(0.5, 0.5, "not measured", ha="center", va="center", color=_GREY, transform=axis.transAxes)
        return
    if log and _is_positive(axis):
        axis.set_yscale("log", nonpositive="mask")  # a step without a clipped token is a gap, not a drop to zero
    elif bottom is not None:
        axis.set_ylim(bottom=bottom)
    if top is not None:
        axis.set_ylim(top=top)
    axis.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=min(len(labels), 3),
                frameon=False, fontsize=9, columnspacing=1.2, handlelength=1.6)  # fmt: skip


def _is_positive(axis: Axes) -> bool:
    return any(np.any(np.asarray(line.get_ydata()) > 0) for line in axis.get_lines())


def _panel(panel: str, title: str, unit: str, *colours: str, **options: Any) -> functools.partial[None]:
    return functools.partial(_lines, panel=panel, title=title, unit=unit, colours=colours, **options)


_PERCENT: dict[str, Any] = {"smooth": True, "scale": 100, "bottom": 0, "top": 100}
_PANELS: tuple[Panel, ...] = (
    _evaluation,
    _panel("rollouts", "Rollouts", "%", _BLUE, _RED, _GREY, **_PERCENT),
    _panel("in help", "Accuracy in prompts with help", "%", *_OF_HELP, **_PERCENT),
    _panel("buffer", "Replay buffer", "questions", _BLUE, _GREEN, _RED, bottom=0),
    _panel("helped", "Prompts with help in a step", "groups", *_OF_HELP, bottom=0),
    _panel("loss", "Loss", "of a token", _BLUE, smooth=True),
    _panel("gradient", "Gradient and sampler mismatch", "norm, share, or nats (log)", _PURPLE, _RED, _BLUE, log=True),
    _panel("speed", "Speed", "tokens per second", _BLUE, smooth=True, bottom=0),
    _times,
)
