"""dataset.json: what a build read, why it dropped what it dropped, and from which files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zppo_jax.data.zppo77k.decide import Decision
from zppo_jax.data.zppo77k.filters import REASONS
from zppo_jax.data.zppo77k.recipe import SubDataset, tiers
from zppo_jax.errors import RunError
from zppo_jax.files import read_file, write_atomically

NAME = "dataset.json"
SCHEMA_VERSION = 1


def content(
    decision: Decision, rows: Sequence[SubDataset], recipe: dict[str, Any], inputs: dict[str, str], seed: int
) -> dict[str, Any]:
    """The content of dataset.json. A sub-dataset has the rows of both corpora; read = kept + the sum of `dropped`.

    Raises RunError if that does not hold: a row would have been lost in silence.
    """
    sub_datasets = {}
    for name, tier in tiers(rows).items():
        numbers = [number for number, row in enumerate(rows) if row.name == name]
        read, dropped = int(decision.read[numbers].sum()), decision.counts[numbers].sum(0)
        if read:
            reasons = {reason.value: int(count) for reason, count in zip(REASONS, dropped, strict=True) if count}
            sub_datasets[name] = {"tier": tier, "read": read, "dropped": reasons, "kept": read - int(dropped.sum())}
    num_questions = len(decision.rows)
    if sum(entry["kept"] for entry in sub_datasets.values()) != num_questions:
        raise RunError(f"{num_questions} rows are chosen, and the counts say otherwise: please report this")
    return {
        "schema_version": SCHEMA_VERSION,
        "num_questions": num_questions,
        "seed": seed,
        "recipe": recipe | {"not_in_recipe": decision.others},
        "inputs": dict(sorted(inputs.items())),
        "sub_datasets": dict(sorted(sub_datasets.items())),
    }


def write(directory: Path, manifest: dict[str, Any]) -> None:
    """Writes dataset.json, which says that a build is complete."""
    write_atomically(directory / NAME, (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())


def read(directory: Path) -> dict[str, Any] | None:
    """Reads dataset.json; None if the build is not complete. RunError if the file is another one."""
    written = read_file(directory / NAME)
    if not written:
        return None
    try:
        manifest = json.loads(written)
        return manifest if isinstance(manifest["sub_datasets"], dict) else {}
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{directory / NAME} is not a file of this builder: choose another --out") from error


def table(manifest: dict[str, Any]) -> str:
    """The counts as text, a line a sub-dataset."""
    lines = [("sub-dataset", "tier", "read", "kept", "dropped")]
    for name, entry in manifest["sub_datasets"].items():
        dropped = ", ".join(f"{reason} {count:,}" for reason, count in entry["dropped"].items())
        lines.append((name, str(entry["tier"] or "-"), f"{entry['read']:,}", f"{entry['kept']:,}", dropped))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
    others = manifest["recipe"]["not_in_recipe"]
    rest = ", ".join(f"{source} {count:,}" for source, count in others.items())
    return text + (f"\n\nnot in the recipe, left out: {rest}" if others else "") + "\n"
