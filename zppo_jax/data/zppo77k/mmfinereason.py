"""MMFineReason's rows: one table, whose column `source` names the sub-dataset.

`question` and `answer` are the cleaned ones; `original_question` holds raw directives and is not read. Releases differ
in the name of the pass rate (`pass_rate`, `qwen3vl_4b_pass_rate`) and in its type: both names and texts are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zppo_jax.data.zppo77k import golds
from zppo_jax.data.zppo77k.upstream import Upstream, number, plain, text
from zppo_jax.errors import RunError

PASS_RATES = ("pass_rate", "qwen3vl_4b_pass_rate")
_NEEDED = ("source", "question", "answer")


def text_columns(names: Sequence[str], file: str, needs_rate: bool, recover_golds: bool) -> list[str]:
    """The columns of texts in a file with these columns; RunError if the schema is another one."""
    if missing := [name for name in _NEEDED if name not in names]:
        raise RunError(
            f"{file} has no column {missing[0]!r} (it has {', '.join(names)}): name the parquet files of "
            "MMFineReason-SFT; the older raw release has another schema"
        )
    rates = [name for name in PASS_RATES if name in names]
    if needs_rate and not rates:
        raise RunError(
            f"{file} has neither {' nor '.join(PASS_RATES)}: take another release, or --missing_pass_rate=keep"
        )
    more = ("id", "is_consistent", *(("original_answer",) if recover_golds else ()))
    return [*_NEEDED, *rates[:1], *(name for name in more if name in names)]


def row(cells: Mapping[str, Any], recover_golds: bool = False) -> Upstream:
    """The texts of a row. With `recover_golds` a missing answer is taken from the tag in `original_answer`."""
    gold = cells.get("answer")
    if recover_golds and (gold is None or not str(gold).strip()):
        gold = golds.tagged(cells.get("original_answer"))
    identity = cells.get("id")
    return Upstream(
        upstream=str(cells.get("source") or ""),
        id="" if identity is None else str(identity),
        question=text(cells.get("question")),
        gold=None if gold is None else str(gold),
        pass_rate=next((rate(cells[name]) for name in PASS_RATES if name in cells), None),
        extra={"is_consistent": plain(cells.get("is_consistent"))},
    )


def rate(value: Any) -> float | None:
    """A pass rate in [0, 1], also from a text; None if it is none."""
    found = number(value)
    return found if found is not None and 0.0 <= found <= 1.0 else None
