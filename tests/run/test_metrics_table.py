"""The table of metrics, from which rows, documentation and picture are made."""

from __future__ import annotations

import fnmatch
import functools
from pathlib import Path

from zppo_jax.report import curves
from zppo_jax.run.metrics import METRICS, SCHEMA, document
from zppo_jax.run.rows import read_rows

ROOT = Path(__file__).parents[2]


def test_names_are_unique_and_have_a_meaning():
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names) and all(metric.meaning for metric in METRICS)
    assert set(SCHEMA) == {name for name in names if "*" not in name}


def test_the_documentation_is_the_table():
    said = (ROOT / "docs" / "metrics.md").read_text()
    assert said == document(), "write it again: python -m zppo_jax.run.metrics > docs/metrics.md"


def described(name: str) -> bool:
    """Whether a row of the table describes a name in metrics.jsonl."""
    return any(fnmatch.fnmatchcase(name, metric.name) for metric in METRICS)


def test_every_number_of_a_run_is_described(straight):
    for row in read_rows(straight / "metrics.jsonl"):
        assert not [name for name in row if name != "step" and not described(name)]
        assert set(SCHEMA) <= row.keys()


def test_a_name_that_nobody_describes_is_found():
    assert not described("rollout/nothing") and described("eval/accuracy/hidden/dax")


def test_every_panel_of_the_table_is_drawn():
    drawn = {"evaluation", "time"} | {
        panel.keywords["panel"] for panel in curves._PANELS if isinstance(panel, functools.partial)
    }
    assert {metric.panel for metric in METRICS if metric.panel} == drawn
