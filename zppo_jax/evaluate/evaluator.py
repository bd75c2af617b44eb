"""The interface of an evaluation; the training loop runs a list of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol


class Evaluator(Protocol):
    """Measures the student every `every` steps, before the first and after the last."""

    @property
    def every(self) -> int: ...

    def run(self, params: dict[str, Any], step: int) -> Iterator[tuple[str, float]]:
        """Yields (name, value) for the row of the step in metrics.jsonl; names begin with "eval/".

        `params` are the parameters that this host samples with.
        """
        ...
