"""Counters of a sampler."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class Counters:
    """Sampled `tokens`; rollouts that ended (`finished`), how many of them at their limit (`truncated`), tokens of the
    `longest`; `steps` of decoding, and `slot_steps`, that times the number of slots; `prompts` prefilled."""

    tokens: int = 0
    finished: int = 0
    truncated: int = 0
    longest: int = 0
    steps: int = 0
    slot_steps: int = 0
    prompts: int = 0

    def add(self, other: Counters) -> None:
        self.longest = max(self.longest, other.longest)
        for name in ("tokens", "finished", "truncated", "steps", "slot_steps", "prompts"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def take(self) -> Counters:
        """Returns the counts since the last call, and starts from zero."""
        taken = dataclasses.replace(self)
        vars(self).update(vars(Counters()))
        return taken

    def line(self, total: int, seconds: float) -> str:
        """The progress of `total` rollouts after `seconds`, as a line for the user."""
        return (
            f"rollouts {self.finished}/{total}  {self.tokens} tokens, {self.tokens / max(seconds, 1e-9):.0f} a second  "
            f"slots {100 * self.occupancy:.0f} % used  {100 * self.truncated / max(self.finished, 1):.0f} % truncated  "
            f"longest {self.longest}"
        )

    @property
    def occupancy(self) -> float:
        """The share of the slots' steps that produced a token."""
        return self.tokens / max(self.slot_steps, 1)
