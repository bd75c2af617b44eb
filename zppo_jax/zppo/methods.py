"""The methods of the paper as rows of one table (Sec. 4 and App. D.2 of arXiv:2606.18216), not branches in the loop.

A method says whether it has the replay buffer and which prompts it adds. A new kind of added prompt (hint, prefix)
joins by a row in `reformulate.REFORMULATIONS` (and a `Kind` in `types`), a new method by a row here; the training loop
reads the rows and does not change.
"""

from __future__ import annotations

import dataclasses

from zppo_jax.zppo.reformulate import REFORMULATIONS, check_reformulations


@dataclasses.dataclass(frozen=True)
class Method:
    """A row: GRPO with or without the replay buffer, and the reformulations that it adds for hard questions."""

    name: str
    uses_replay: bool
    reformulations: tuple[str, ...]

    def __post_init__(self) -> None:
        check_reformulations(self.reformulations)

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher must answer the hard questions itself (it may still be wanted as compressor)."""
        return any(REFORMULATIONS[name].needs_teacher for name in self.reformulations)

    @property
    def needs_summaries(self) -> bool:
        """Whether there are candidates to be compressed at all."""
        return bool(self.reformulations)

    @property
    def summary(self) -> str:
        """The row in words, for logs and reports."""
        parts = ["replay buffer"] * self.uses_replay + [name.upper() for name in self.reformulations]
        return " + ".join(["GRPO", *parts])


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("grpo", uses_replay=False, reformulations=()),
        Method("grpo_replay", uses_replay=True, reformulations=()),
        Method("grpo_both", uses_replay=False, reformulations=("bcq", "ncq")),
        Method("grpo_replay_bcq", uses_replay=True, reformulations=("bcq",)),
        Method("grpo_replay_ncq", uses_replay=True, reformulations=("ncq",)),
        Method("zppo", uses_replay=True, reformulations=("bcq", "ncq")),
    )
}


def get_method(name: str) -> Method:
    """The method of that name; ValueError names the known ones."""
    if name not in METHODS:
        raise ValueError(f"method={name!r} is unknown; use one of {', '.join(METHODS)}")
    return METHODS[name]
