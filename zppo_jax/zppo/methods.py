"""The methods of the paper as rows of one table (Sec. 4 and App. D.2 of arXiv:2606.18216), not branches in the loop.

A row holds everything in which methods differ: the replay buffer, the help for hard questions, whose responses are
learned from, what each response counts for (credit), the loss, and the number of updates per step. The training loop
reads the row and does not change.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from zppo_jax.config import Config
from zppo_jax.config.combinations import TEACHER
from zppo_jax.config.teacher import teacher_place
from zppo_jax.errors import ConfigError
from zppo_jax.zppo import select
from zppo_jax.zppo.helps import HELPS
from zppo_jax.zppo.reformulate import check_helps


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of METHODS.

    Attributes:
      name: its name on the command line.
      uses_replay: whether hard questions come back from the replay buffer.
      helps: kinds of help for hard questions, names of `HELPS`.
      learns_from: whose responses the update learns from.
      credit: what each response counts for; a name of `update.CREDITS`.
      objective: the loss; a name of `update.OBJECTIVES`.
      reference: whether the objective compares the student with the teacher, on the devices of the update.
      whole_batch: one update per step on all groups; otherwise the configuration sets the mini-batches and epochs.
    """

    name: str
    uses_replay: bool
    helps: tuple[str, ...]
    learns_from: Literal["student", "teacher"] = "student"
    credit: str = "group_relative"
    objective: str = "clipped"
    reference: bool = False
    whole_batch: bool = False

    def __post_init__(self) -> None:
        check_helps(self.helps)
        if self.helps and self.learns_from == "teacher":
            raise ValueError(f"method {self.name}: the student answers prompts with help, so it must learn from itself")

    @property
    def asks_teacher(self) -> bool:
        """Whether the teacher must answer the hard questions itself (it may be needed to write as well)."""
        return any(HELPS[kind].needs_teacher for kind in self.helps)

    @property
    def needs_texts(self) -> bool:
        """Whether the teacher must write, because some of its texts have no fallback."""
        return any(HELPS[kind].digest.fallback is None for kind in self.helps)

    def teacher_answers(self, config: Config) -> bool:
        """Whether a run samples the teacher's responses: to help with hard questions, or to learn from."""
        return self.learns_from == "teacher" or (self.asks_teacher and _helps(config))

    def teacher_writes(self, config: Config) -> bool:
        """Whether a run asks the teacher to write: summaries, or texts that a prompt needs."""
        return bool(self.helps) and _helps(config) and (config.teacher.compress.enabled or self.needs_texts)

    def needs_teacher(self, config: Config) -> bool:
        """Whether a run samples from a teacher, which may also be its judge."""
        return self.teacher_answers(config) or self.teacher_writes(config) or config.judge.endpoint == TEACHER

    def loads_teacher(self, config: Config) -> bool:
        """Whether a run needs a teacher's weights, to sample from in this process or as a reference."""
        return (self.needs_teacher(config) and teacher_place(config) == "local") or self.reference

    @property
    def summary(self) -> str:
        """The row in words, for logs and reports."""
        parts = ["replay buffer"] * self.uses_replay + [kind.upper() for kind in self.helps]
        return " + ".join(["GRPO", *parts])


def _helps(config: Config) -> bool:
    """Whether the cap on prompts with help leaves room for one."""
    return select.augmentation_limit(config.zppo.augmentation_fraction, config.rollout.questions_per_step) > 0


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("grpo", uses_replay=False, helps=()),
        Method("grpo_replay", uses_replay=True, helps=()),
        Method("grpo_both", uses_replay=False, helps=("bcq", "ncq")),
        Method("grpo_replay_bcq", uses_replay=True, helps=("bcq",)),
        Method("grpo_replay_ncq", uses_replay=True, helps=("ncq",)),
        Method("zppo", uses_replay=True, helps=("bcq", "ncq")),
    )
}


def get_method(name: str) -> Method:
    """Returns the method of that name; raises ConfigError, which lists the known ones."""
    if name not in METHODS:
        raise ConfigError(f"method = {name!r}: there is no such method; give one of {', '.join(METHODS)}")
    return METHODS[name]
