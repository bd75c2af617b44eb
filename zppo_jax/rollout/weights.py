"""The weights of decoding, kept from one call of the sampler to the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from zppo_jax.compilation import Program
from zppo_jax.models.qwen3_5.steps import Weights


@dataclasses.dataclass
class HeldWeights:
    """What was made of the parameters that were sampled from last.

    These are copies, as large as the language model: whoever needs the memory for something else releases them.
    """

    _made: tuple[Program, dict[str, Any], Weights] | None = None

    def of(self, join: Program, params: dict[str, Any], make: Callable[[], Weights]) -> Weights:
        """Those at hand where this program made them of these very parameters, else what `make` gives; never two sets
        at a time."""
        if self._made is None or self._made[0] is not join or self._made[1] is not params:
            self.release()
            self._made = join, params, make()
        return self._made[2]

    def release(self) -> None:
        """Forgets them."""
        self._made = None
