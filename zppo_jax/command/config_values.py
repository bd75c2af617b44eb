"""The configuration of a command other than a training run: `--config=FILE.py[:METHOD]` with overrides."""

from __future__ import annotations

import re
from collections.abc import Sequence

from zppo_jax.command.config_file import load_config
from zppo_jax.command.flags import last_value
from zppo_jax.command.overrides import check_override, overrides, value_of
from zppo_jax.config import Config, from_config_dict
from zppo_jax.errors import ConfigError


def read_config(argv: Sequence[str], example: str) -> tuple[Config, list[str]]:
    """The checked configuration of a command line, and the arguments that are not about it. Raises ConfigError."""
    path = last_value(argv, "config")
    if not path:
        raise ConfigError(f"--config is missing: name a configuration file, as in `{example}`")
    tree = load_config(path)
    for name, text in overrides(argv):
        check_override(name, text)
        tree.update_from_flattened_dict({name: value_of(name, "true" if text is None else text)})
    return from_config_dict(tree), _others(argv)


def _others(argv: Sequence[str]) -> list[str]:
    """The arguments without --config, --config.KEY and their values."""
    rest: list[str] = []
    about_config = re.compile(r"--?(no)?config(\.[^=]*)?(=.*)?", re.DOTALL)
    skip = False
    for position, argument in enumerate(argv):
        if skip:
            skip = False
        elif about_config.fullmatch(argument):
            has_value = "=" in argument or argument.lstrip("-").startswith("no")
            skip = not has_value and position + 1 < len(argv) and not argv[position + 1].startswith("-")
        else:
            rest.append(argument)
    return rest
