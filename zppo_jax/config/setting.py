"""The declaration of one key of a configuration."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Setting:
    """The meaning of a key, its allowed values, and whether it may change when a run is continued.

    `minimum` and `maximum` are allowed values themselves, `above` and `below` are not. Keys that `may_change` control
    how long a run trains, what it writes, and how it uses the machine: its results stay the same up to rounding.
    """

    doc: str
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    may_change: bool = False

    def rule(self) -> str:
        """The allowed values in words; empty if every value of the type is allowed."""
        if self.choices:
            return "one of " + ", ".join(repr(choice) for choice in self.choices)
        bounds = [
            ("at least", self.minimum),
            ("above", self.above),
            ("at most", self.maximum),
            ("below", self.below),
        ]
        return " and ".join(f"{words} {bound}" for words, bound in bounds if bound is not None)

    def allows(self, value: Any) -> bool:
        """Whether a value of the key's type is in range."""
        if self.choices:
            return value in self.choices
        return not (
            (self.minimum is not None and value < self.minimum)
            or (self.above is not None and value <= self.above)
            or (self.maximum is not None and value > self.maximum)
            or (self.below is not None and value >= self.below)
        )
