"""Where the teacher of a configuration is."""

from __future__ import annotations

import re
from typing import Literal

from zppo_jax.config.schema import Config

RECORDED = "recorded:"
"""The beginning of a teacher.path that names a recording."""

_SERVED = re.compile(r"\s*\w+://")

TeacherPlace = Literal["local", "served", "recorded"]


def teacher_place(config: Config) -> TeacherPlace:
    """Where the teacher is: in this process, behind a network, or in a recording."""
    if _SERVED.match(config.teacher.path):
        return "served"
    return "recorded" if config.teacher.path.startswith(RECORDED) else "local"
