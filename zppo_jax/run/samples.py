"""samples.jsonl: one line per group of rollouts, with its lineage, in files of bounded size and number."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zppo_jax.run.rows import append, cut, json_line, scalar
from zppo_jax.types import IMAGE_MARK, VIDEO_MARK, Group


class SampleWriter:
    """Writes `samples.jsonl`, one line per group with its lineage, in files of bounded size and number.

    A full file becomes `samples.1.jsonl`, that one `samples.2.jsonl` and so on; beyond `keep` they are deleted.
    Rotation depends only on the lines, never on the clock.
    """

    def __init__(self, workdir: Path | str, max_megabytes: float, keep: int) -> None:
        self._file = Path(workdir) / "samples.jsonl"
        self._max_bytes = int(max_megabytes * 1e6)
        self._keep = keep

    def write(self, step: int, group: Group, advantages_G: np.ndarray | Sequence[float] | None) -> None:
        """Appends one group; `advantages_G` are as in `sample_row`."""
        line = json_line(sample_row(step, group, advantages_G))
        size = self._file.stat().st_size if self._file.exists() else 0
        if size > 0 and size + len(line) > self._max_bytes:
            self._rotate()
        append(self._file, line)

    def truncate(self, step: int) -> None:
        """Cuts current and rotated files back to lines of at most `step`, and undoes later rotations. Raises
        WorkdirError if a line is damaged."""
        for file in self.files():
            cut(file, step)
        remaining = [file for file in self.files() if file.stat().st_size > 0]
        for file in self.files():
            if file not in remaining:
                file.unlink()
        for number, file in enumerate(remaining):
            file.replace(self._rotated(number))

    def files(self) -> list[Path]:
        """The existing sample files, newest first."""
        numbered = (self._rotated(number) for number in range(self._keep + 1))
        return [file for file in numbered if file.exists()]

    def _rotated(self, number: int) -> Path:
        return self._file if number == 0 else self._file.with_name(f"samples.{number}.jsonl")

    def _rotate(self) -> None:
        self._rotated(self._keep).unlink(missing_ok=True)
        for number in reversed(range(self._keep)):
            if self._rotated(number).exists():
                self._rotated(number).replace(self._rotated(number + 1))


def sample_row(step: int, group: Group, advantages_G: np.ndarray | Sequence[float] | None) -> dict[str, Any]:
    """The line of a group in samples.jsonl: the prompt with the responses that it shows (author, whole text, shown
    text), the question's gold and metadata; the author of the responses, and for each its text, parsed answer, length
    in tokens, reward (None: undecided), scorer's status and advantage.

    `advantages_G` are those of the first epoch of the step's updates: with `advantage.scope = minibatch` each epoch
    has others. They are None for a group that is not learned from.
    """
    prompt = group.prompt
    return {
        "step": int(step),
        "question_id": prompt.question.id,
        "kind": prompt.kind,
        "uid": prompt.uid,
        "parent": prompt.parent,
        "prompt": prompt.text.replace(IMAGE_MARK, "<image>").replace(VIDEO_MARK, "<video>"),
        "opening": prompt.opening,
        "shown": [dataclasses.asdict(one) for one in prompt.shown],
        "gold": prompt.question.answer,
        "metadata": dict(prompt.question.metadata),
        "author": group.author,
        "responses": [rollout.text for rollout in group.rollouts],
        "answers": [rollout.answer for rollout in group.rollouts],
        "finish_reasons": [rollout.finish_reason for rollout in group.rollouts],
        "lengths": [len(rollout.token_ids_T) for rollout in group.rollouts],
        "rewards": [float(one.correct) if one.decided else None for one in group.rollouts],
        "statuses": [one.status for one in group.rollouts],
        "advantages": None if advantages_G is None else [scalar(advantage) for advantage in advantages_G],
    }
