"""The table of the lines that `bash benchmarks/gpu.sh` wrote.

python -m benchmarks.on_gpu.table FILE
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_HIDDEN = ("case", "device", "jax", "small", "step_gb", "goal", "status")


def cells(line: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The rows of the table for a line: (case, name, value); nested values are one row each."""
    case = " ".join(str(line[name]) for name in ("case", "side", "kernel", "shape", "size", "step") if name in line)
    if line.get("measured") is False:
        yield case, "not measured", str(line.get("why", ""))
        return
    for name, value in line.items():
        if name in ("side", "kernel", "shape", "size", "step", *_HIDDEN) or value is None:
            continue
        if isinstance(value, dict):
            yield case, name, ", ".join(f"{key} {_text(one)}" for key, one in value.items())
        else:
            yield case, name, _text(value) + (f" (goal {line['goal']:g})" if name in _GOALS and "goal" in line else "")


_GOALS = ("bandwidth_share", "utilisation")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("why") or " / ".join(f"{_text(one)} {key}" for key, one in value.items()))
    if isinstance(value, list):
        return " and ".join(map(_text, value))
    return f"{value:,.4g}" if isinstance(value, float) and abs(value) < 1e4 else str(value)


def table(lines: list[dict[str, Any]]) -> list[str]:
    """A Markdown table that is also readable as plain text."""
    rows = [("case", "what", "value"), *(row for line in lines for row in cells(line))]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    made = [f"| {case.ljust(widths[0])} | {name.ljust(widths[1])} | {value} |" for case, name, value in rows]
    return [made[0], f"|{'-' * (widths[0] + 2)}|{'-' * (widths[1] + 2)}|---|", *made[1:]]


def main() -> None:
    text = Path(sys.argv[1]).read_text()
    print("\n".join(table([json.loads(line) for line in text.splitlines() if line.startswith("{")])))


if __name__ == "__main__":
    main()
