"""Between the passes: duplicates and caps, decided from the facts of all rows, a few dozen bytes each.

The order of rows is that of the inputs, Vero first, so the first of equal rows is the one with the higher priority. A
sample up to a cap takes the rows whose random place is first: it does not depend on the order, nor on workers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from zppo_jax.data.zppo77k.filters import Reason
from zppo_jax.data.zppo77k.recipe import Settings, SubDataset, tiers
from zppo_jax.data.zppo77k.units import FACTS, Facts, column


@dataclasses.dataclass(frozen=True, eq=False)
class Decision:
    """The chosen rows in order, as arrays [n] of units and of rows in the unit's file; `counts` [recipe rows, reasons]
    and `read` [recipe rows] of all units; `others`: rows of sources that are not in the recipe."""

    units: np.ndarray
    rows: np.ndarray
    counts: np.ndarray
    read: np.ndarray
    others: dict[str, int]


def decide(facts: Iterable[Facts], rows: Sequence[SubDataset], settings: Settings) -> Decision:
    """Drops duplicates and samples up to the caps; `facts` are those of the units, in order."""
    total, kept, units = Facts.empty(len(rows)), [], []
    for unit, part in enumerate(facts):
        kept.append(part.kept)
        units.append(np.full(len(part.kept), unit, np.uint32))
        total.counts[:] += part.counts
        total.read[:] += part.read
        for source, count in part.others.items():
            total.others[source] = total.others.get(source, 0) + count
    kept_N = np.concatenate(kept) if kept else np.zeros(0, FACTS)
    unit_N = np.concatenate(units) if units else np.zeros(0, np.uint32)
    winner_N = _winners(kept_N["key"])
    dropped_N = winner_N != np.arange(len(kept_N))
    beaten_N = dropped_N & _beaten_by_vero(kept_N["sub"], winner_N, rows)
    _count(total.counts, kept_N["sub"][beaten_N], Reason.OTHER_SOURCE_WINS)
    _count(total.counts, kept_N["sub"][dropped_N & ~beaten_N], Reason.DUPLICATE)
    over_N = ~dropped_N & ~_sampled(kept_N, ~dropped_N, rows, settings)
    _count(total.counts, kept_N["sub"][over_N], Reason.OVER_CAP)
    chosen_N = ~dropped_N & ~over_N
    return Decision(
        unit_N[chosen_N], kept_N["row"][chosen_N], total.counts, total.read, dict(sorted(total.others.items()))
    )


def _winners(key_N: np.ndarray) -> np.ndarray:
    """The index of the first row with the same key, for each row."""
    halves = np.frombuffer(key_N.tobytes(), "<u8").reshape(-1, 2)
    index_N = np.arange(len(key_N))
    order_N = np.lexsort((index_N, halves[:, 0], halves[:, 1]))
    sorted_N = halves[order_N]
    is_first_N = np.ones(len(key_N), bool)
    is_first_N[1:] = (sorted_N[1:] != sorted_N[:-1]).any(1)
    winner_N = np.empty_like(index_N)
    winner_N[order_N] = order_N[is_first_N][np.cumsum(is_first_N) - 1]
    return winner_N


def _beaten_by_vero(sub_N: np.ndarray, winner_N: np.ndarray, rows: Sequence[SubDataset]) -> np.ndarray:
    """Whether a row repeats one of Vero's sub-dataset of the same canonical name."""
    names = {name: number for number, name in enumerate(dict.fromkeys(row.name for row in rows))}
    name_S = np.array([names[row.name] for row in rows] or [0])
    is_vero_S = np.array([row.corpus == "vero" for row in rows] or [False])
    by_N = sub_N[winner_N]
    return ~is_vero_S[sub_N] & is_vero_S[by_N] & (name_S[sub_N] == name_S[by_N])


def _sampled(kept_N: np.ndarray, left_N: np.ndarray, rows: Sequence[SubDataset], settings: Settings) -> np.ndarray:
    """Whether a row of those that are left is in the sample of its cap."""
    tier_of = tiers(rows)
    shared = settings.cap_per == "name"
    groups: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row.name if shared else row.key, []).append(number)
    sampled_N = np.zeros(len(kept_N), bool)
    for numbers in groups.values():
        index = np.flatnonzero(left_N & np.isin(kept_N["sub"], numbers))
        order = np.lexsort((index, kept_N["draw"][index]))
        sampled_N[index[order[: settings.cap(tier_of[rows[numbers[0]].name])]]] = True
    return sampled_N


def _count(counts: np.ndarray, sub_N: np.ndarray, reason: Reason) -> None:
    counts[:, column(reason)] += np.bincount(sub_N, minlength=len(counts))
