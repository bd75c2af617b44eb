"""The weights of decoding, kept from one call of the sampler to the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from zppo_jax.models.qwen3_5.steps import Weights


@dataclasses.dataclass
class HeldWeights:
    """What was made of the parameters that were sampled from last.

    These are copies, as large as the language model: whoever needs the memory for something else releases them.
    """

    _params: Any = None
    _weights: Weights | None = None

    def of(self, params: dict[str, Any], make: Callable[[], Weights]) -> Weights:
        """Those at hand where they are of these very parameters, else what `make` gives; never two sets at a time."""
        if self._weights is None or params is not self._params:
            self.release()
            self._params, self._weights = params, make()
        return self._weights

    def release(self) -> None:
        """Forgets them."""
        self._params = self._weights = None
