"""Answers as tables in Markdown: on the terminal, and for docs/scale.md from the JSON files that are kept.

python -m zppo_jax.aot.table docs/scale/*.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

COLUMNS = (
    "program", "arguments", "temporary", "peak", "beside", "limit", "fits", "between devices", "TFLOP",
    "s at 40 %", "compiled in",
)  # fmt: skip


def main(paths: Sequence[str] | None = None) -> None:
    """Prints a section for each file: its command, and the table of its answer."""
    for path in sys.argv[1:] if paths is None else paths:
        print("\n".join(section(json.loads(Path(path).read_text()))))


def section(answer: dict[str, Any]) -> Iterator[str]:
    """The lines of one answer, after its command."""
    yield from ("```", answer["command"], "```", "")
    yield from lines(answer)
    yield ""


def lines(answer: dict[str, Any]) -> Iterator[str]:
    """The lines of one answer: the slice, the table, and the result of the search."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in answer["mesh"].items())
    versions = ", ".join(f"{name} {version}" for name, version in answer["versions"].items())
    held = f"parameters and optimiser {answer['state_gib']:.2f} GiB, teacher {answer['teacher_gib']:.2f}"
    held += f", code of these programs {answer['code_gib']:.2f}" if "code_gib" in answer else ""
    where = f"{answer['topology']}, {answer['devices']} devices"
    where += f" of {answer['hosts']} hosts" if answer.get("hosts", 1) > 1 else ""
    yield f"{where}, mesh {mesh}; {held}; {answer['date']}, {versions}:"
    yield ""
    if "search" in answer:
        yield from _aligned(("rows a micro-batch", "peak", "beside", "fits", "compiled in"), _tried(answer["search"]))
        yield from ("", _found(answer["search"]))
    else:
        yield from _aligned(COLUMNS, [_cells(one) for one in answer["programs"]])
        yield from ("", answer["advice"]) if "advice" in answer else ()


def _found(search: dict[str, Any]) -> str:
    largest, last = search["largest_rows_per_microbatch"], search["tried"][-1]["rows_per_microbatch"]
    if search["decided"]:
        return f"The largest that fits: {largest} rows." if largest else "None fits."
    known = "nothing is known" if largest is None else f"{largest} rows fit"
    return f"Time ran out at {last} rows: {known}."


def _tried(search: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            str(one["rows_per_microbatch"]),
            f"{one['peak_gib']:.2f}",
            f"{one['beside_gib']:.2f}",
            _fits(one),
            f"{one['compile_s']:.0f} s",
        )
        for one in search["tried"]
    ]


def _cells(one: dict[str, Any]) -> tuple[str, ...]:
    sizes = [f"{one[name]:.2f}" for name in ("argument_gib", "temp_gib", "peak_gib", "beside_gib", "limit_gib")]
    if "error" in one:  # there is no program whose parts could be listed
        sizes[:2] = ["", ""]
        sizes[2] = sizes[2] if one["peak_gib"] else ""
    moved = ", ".join(f"{kind} {size / 2**30:.2f}" for kind, size in one["collective_bytes"].items())
    work = [f"{one['tflop']:,.0f}" if one["tflop"] >= 10 else f"{one['tflop']:.2g}"] if "tflop" in one else [""]
    work += [f"{one['seconds_at_40_percent']:.2f}"] if "tflop" in one else [""]
    return one["name"], *sizes, _fits(one), moved, *work, f"{one['compile_s']:.0f} s"


def _fits(one: dict[str, Any]) -> str:
    if one["fits"] is None:
        return one["error"]
    missing = one.get("missing_gib")
    return "yes" if one["fits"] else f"{missing:.2f} short" if missing else "no"


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table that is also readable as plain text: text to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *rest = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        return f"| {' | '.join((first.strip().ljust(widths[0]), *rest))} |"

    yield line(header)
    yield "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    yield from map(line, rows)


if __name__ == "__main__":
    main()
