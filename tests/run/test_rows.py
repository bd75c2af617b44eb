"""Damaged lines of metrics.jsonl and samples.jsonl: an error that names the line, and nothing is cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from zppo_jax.errors import ConfigError, WorkdirError
from zppo_jax.run.metrics_file import MetricsWriter
from zppo_jax.run.rows import read_metrics, read_rows
from zppo_jax.run.samples import SampleWriter

ROWS = b'{"step": 0, "a": 1.0}\n{"step": 1, "a": 2.0}\n{"step": 2, "a": null}\n{"step": 3, "a": 4}\n'


def refusal(action: Callable[..., object], *arguments: Any, **named: Any) -> str:
    with pytest.raises((WorkdirError, ConfigError)) as caught:
        action(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(line: bytes) -> bytes:
    lines = ROWS.split(b"\n")
    return b"\n".join([lines[0], line, *lines[2:]])


ODD_ROWS = [
    *(
        b'{"step": 1, "a": \xff}',
        b"",
        b"null",
        b"[1]",
        b'{"a": 1}',
        b'{"step": "1"}',
        b'{"step": true}',
        b'{"step": -1}',
    ),
    *(b'{"step": 1, "a": NaN}', b'{"step": 1, "a": 2', b"[" * 10**5, b'{"step": 1}{', b"\0" * 20, b'{"step": 1.0}'),
]


@pytest.mark.parametrize("line", ODD_ROWS, ids=range(len(ODD_ROWS)))
@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_a_damaged_line_in_the_middle_is_an_error_and_nothing_is_cut(tmp_path, name, line):
    (tmp_path / name).write_bytes(changed(line))
    writer = MetricsWriter(tmp_path) if name == "metrics.jsonl" else SampleWriter(tmp_path, 1.0, 2)
    message = refusal(writer.truncate, 3)
    assert message.startswith(f"{tmp_path / name}, line 2 is damaged (") and "delete it (sed -i 2d)" in message
    assert (tmp_path / name).read_bytes() == changed(line)
    (tmp_path / name).write_bytes(ROWS)  # repaired
    writer.truncate(2)
    if isinstance(writer, MetricsWriter):
        writer.close()
    assert [row["step"] for row in read_rows(tmp_path / name)] == [0, 1, 2]


@pytest.mark.parametrize("value", [b'"x"', b"[1]", b"{}", b"1e999", b"1" + b"0" * 400])
def test_a_metric_that_is_no_number_is_an_error(tmp_path, value):
    (tmp_path / "metrics.jsonl").write_bytes(changed(b'{"step": 1, "a": %s}' % value))
    assert "line 2 is damaged (a is not a number)" in refusal(MetricsWriter(tmp_path).truncate, 3)
    assert "line 2 is damaged (a is not a number)" in refusal(read_metrics, tmp_path / "metrics.jsonl")


def test_only_a_last_line_without_its_end_is_left_out(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(ROWS[:-1])
    assert MetricsWriter(tmp_path, tensorboard=False).truncate(9) == 2
    file.write_bytes(ROWS[:-5] + b"\n")
    assert "line 4 is damaged" in refusal(MetricsWriter(tmp_path, tensorboard=False).truncate, 9)


def test_a_folder_of_events_may_be_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "tensorboard").symlink_to("elsewhere")
    (tmp_path / "metrics.jsonl").write_bytes(ROWS)
    for _ in range(2):
        writer = MetricsWriter(tmp_path)
        assert writer.truncate(3) == 3
        writer.close()
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1
