"""Engines that answer by a script."""

from tests.engine_scripts import scripts_answer  # noqa: F401
