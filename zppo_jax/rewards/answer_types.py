"""Whether the golds of a data source can be scored at all."""

from __future__ import annotations

from collections.abc import Mapping

from zppo_jax.rewards.grade import ANSWER_TYPES, JUDGED


def types_fault(counts: Mapping[str, int], has_judge: bool) -> str | None:
    """The fault of a source with so many golds of each type, in one line: a type that is unknown, or golds that only a
    judge can score where there is none. Responses to those would be neither right nor wrong."""
    for name in sorted(counts.keys() - set(ANSWER_TYPES)):
        return (
            f"the source has {counts[name]} golds of type {name!r}, which is unknown: use one of "
            f"{', '.join(ANSWER_TYPES)}"
        )
    needed = {name: counts[name] for name in sorted(JUDGED) if counts.get(name)}
    if has_judge or not needed:
        return None
    types = ", ".join(f"{count} {name}" for name, count in needed.items())
    return (
        f"{sum(needed.values())} of the {sum(counts.values())} questions have golds that only a judge can score "
        f"({types}), and there is none: set judge.endpoint (docs/judge.md), leave these questions out, or give their "
        "golds a type that a rule scores"
    )
