"""Reads the checkpoints in a folder without opening them for writing: steps, accuracies, damage.

Every file of a checkpoint has a digest (digests.py), which is written before Orbax renames the checkpoint into place,
so every complete checkpoint has digests. Only those of earlier versions of this package have none.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zppo_jax.errors import WorkdirError
from zppo_jax.run import digests

HOST_FILE, METRICS_FILE = "host/metadata", "metrics/metrics"
SIGNED = {"digests": digests.FILE}
"""Part of the host values of every checkpoint with digests: if the digests are missing, it is damaged."""


def saved_steps(directory: Path) -> list[int]:
    """The steps of the complete checkpoints in a directory; unlike `Checkpoints`, this changes nothing there."""
    if not directory.is_dir():
        return []
    names = [path.name for path in directory.iterdir() if path.name.isdecimal() and path.is_dir()]
    return sorted(int(name) for name in names if name == str(int(name)))


def newest(directory: Path) -> tuple[int, dict[str, Any]]:
    """The (step, host values) of the newest checkpoint; (0, {}) if there is none.

    Raises WorkdirError if it, or any folder named like a step, is not a whole checkpoint.
    """
    if (directory.exists() or directory.is_symlink()) and not directory.is_dir():
        raise WorkdirError(f"{directory} is not a folder: move it away, then the same command goes on")
    steps = saved_steps(directory)
    for step in steps:
        folder = directory / str(step)
        if not (folder / HOST_FILE).is_file():
            raise WorkdirError(
                damaged(directory, step, f"{HOST_FILE} is missing" if any(folder.iterdir()) else "empty")
            )
    return (steps[-1], host_values(directory, steps[-1])) if steps else (0, {})


def host_values(directory: Path, step: int) -> dict[str, Any]:
    """Reads the values of a checkpoint that are not arrays. Raises WorkdirError if the file is damaged."""
    folder = directory / str(step)
    try:
        reason = digests.fault(folder, only=HOST_FILE) if digests.exist(folder) else ""
        values = {} if reason else json.loads((folder / HOST_FILE).read_bytes().decode())
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        values, reason = {}, f"{HOST_FILE}: {error}"
    if reason:
        raise WorkdirError(damaged(directory, step, reason))
    return values


def continuing(step: int | None) -> str:
    """Advice on how to continue a run after a damaged checkpoint: from checkpoint `step`, or without one."""
    return f"delete it, then the same command {continues(step)}"


def exporting(step: int | None) -> str:
    """Advice on how to export after a damaged checkpoint: checkpoint `step`, or none."""
    return "continue the run to its next checkpoint" if step is None else f"choose another with --step={step}"


def continues(step: int | None) -> str:
    """Says that the same command then continues, after `step` or from the start."""
    return "starts from the beginning" if step is None else f"continues after step {step}"


def require_sound(
    directory: Path,
    step: int,
    advice: Callable[[int | None], str] = continuing,
    share: tuple[int, int] = (0, 1),
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Reads every file of a checkpoint; raises WorkdirError, which names the first one that has changed.

    Args:
      directory: the directory of the checkpoints.
      step: the step of the checkpoint.
      advice: says what to do, given the newest other checkpoint that is sound.
      share: (index, count): this reader among the `count` that share the files.
      report: called with one line about a checkpoint that has no digests, because an earlier version saved it.
    """
    reason = _fault(directory / str(step), share)
    if reason is None:
        report(f"the checkpoint of step {step} has no digests (an earlier version saved it): its files are not checked")
    elif reason:
        raise WorkdirError(damaged(directory, step, reason, advice))


def damaged(directory: Path, step: int, reason: str, advice: Callable[[int | None], str] = continuing) -> str:
    """The error line for a checkpoint that cannot be used, with the one to use instead."""
    others = (other for other in reversed(saved_steps(directory)) if other != step)
    sound = next((other for other in others if not _fault(directory / str(other))), None)
    return f"the checkpoint {directory / str(step)} is damaged ({reason}): {advice(sound)}"


def _fault(folder: Path, share: tuple[int, int] = (0, 1)) -> str | None:
    """The fault of a checkpoint, "" if it has none; None if it has no digests to compare with."""
    if digests.exist(folder):
        return digests.fault(folder, share=share)
    try:
        values = json.loads((folder / HOST_FILE).read_bytes().decode())
        return f"{digests.FILE} is missing" if values.items() >= SIGNED.items() else None
    except (OSError, ValueError, AttributeError, RecursionError):
        return f"{HOST_FILE} cannot be read"


def accuracies(directory: Path) -> dict[int, float | None]:
    """Held-out accuracy of the evaluated checkpoints, by step; None if it cannot be read."""
    found: dict[int, float | None] = {}
    for step in saved_steps(directory):
        folder = directory / str(step)
        if (folder / METRICS_FILE).exists():
            found[step] = None
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
                if not digests.exist(folder) or not digests.fault(folder, only=METRICS_FILE):
                    found[step] = float(json.loads((folder / METRICS_FILE).read_bytes().decode())["accuracy"])
    return found


def best_step(directory: Path) -> int | None:
    """The step of the checkpoint with the best held-out accuracy, the newest of equals; None if none was evaluated."""
    found = {step: accuracy for step, accuracy in accuracies(directory).items() if accuracy is not None}
    return max(found, key=lambda step: (found[step], step), default=None)
