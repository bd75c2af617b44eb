"""curves.png shows what metrics.jsonl holds, whatever is null."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from PIL import Image

from zppo_jax.report import draw_curves
from zppo_jax.report.curves import running_mean, series
from zppo_jax.run.metrics_file import MetricsWriter


def write_run(workdir, num_steps: int) -> None:
    writer = MetricsWriter(workdir, tensorboard=False)
    writer.write(
        0, {"eval/accuracy": 0.0, "eval/wilson_low": 0.0, "eval/wilson_high": 0.007, "eval/accuracy/read": 0.8}
    )
    for step in range(1, num_steps + 1):
        values = {"rollout/accuracy": step / 50, "replay/size": step, "replay/graduated_total": step // 2}
        values |= {"zppo/bcq_accuracy": 0.25 if step % 3 else None, "update/mismatch_kl": 1e-6, "update/grad_norm": 0.5}
        values |= {"time/step": 3.0, "time/rollout": 1.0, "time/update": 1.5}
        if step == num_steps:
            values |= {
                "eval/accuracy": 0.6,
                "eval/wilson_low": 0.56,
                "eval/wilson_high": 0.64,
                "eval/accuracy/read": 0.9,
            }
        writer.write(step, values)


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The saved figures, for inspection."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (figures.append(self), save(self, *args, **kw)))
    return figures


def lines(figure: Figure, title: str) -> dict[str, np.ndarray]:
    axis = next(axis for axis in figure.axes if axis.get_title(loc="left") == title)
    return {str(line.get_label()): np.asarray(line.get_xydata()) for line in axis.get_lines()}


def test_the_picture_shows_the_rows(tmp_path, drawn):
    write_run(tmp_path, 40)
    assert draw_curves(tmp_path) == tmp_path / "curves.png"
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size == (1650, 1210)
    (figure,) = drawn
    buffer = lines(figure, "Replay buffer")
    np.testing.assert_array_equal(buffer["in the buffer"], [(step, step) for step in range(1, 41)])
    np.testing.assert_array_equal(buffer["graduated so far"][-1], (40, 20))
    assert "evicted so far" not in buffer  # null throughout
    np.testing.assert_array_equal(lines(figure, "Held-out accuracy")["read"], [(0, 80), (40, 90)])
    (bars,) = (bars for axis in figure.axes for bars in axis.containers if isinstance(bars, ErrorbarContainer))
    ends = [segment[:, 1].tolist() for segment in bars.lines[2][0].get_segments()]
    assert ends == [pytest.approx([0.0, 0.7]), pytest.approx([56.0, 64.0])], "not centred"
    steps = lines(figure, "Accuracy in prompts with help")["BCQ"][:, 0]
    np.testing.assert_array_equal(steps, [step for step in range(1, 41) if step % 3])


@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_short_runs_are_drawn(tmp_path, num_steps, drawn):
    write_run(tmp_path, num_steps)
    draw_curves(tmp_path)
    empty = [axis.get_title(loc="left") for axis in drawn[0].axes if [text.get_text() for text in axis.texts]]
    assert ("Time of a step" in empty) == (num_steps == 0) and "Loss" in empty


def test_nothing_to_draw_says_so(tmp_path):
    with pytest.raises(ValueError, match="holds no row"):
        draw_curves(tmp_path)


def test_series_and_running_mean():
    rows = [{"step": 1, "a": 2.0}, {"step": 2, "a": None}, {"step": 3}, {"step": 4, "a": 4.0}]
    steps_N, values_N = series(rows, "a")
    assert steps_N.tolist() == [1, 4] and values_N.tolist() == [2.0, 4.0]
    assert running_mean(np.asarray([1.0, 3.0, 5.0, 7.0]), 2).tolist() == [1, 2, 4, 6]
