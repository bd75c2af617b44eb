"""What the command lines beside `main` share: their own absl flags, read without jax, and mistakes in one line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from absl import flags

from zppo_jax.config import ConfigError


def wants_help(argv: Sequence[str]) -> bool:
    return any(argument in ("--help", "-help", "-h", "--helpfull", "-?") for argument in argv[1:])


def read(values: flags.FlagValues, argv: Sequence[str], program: str, example: str, needed: Sequence[Any]) -> None:
    """Reads a command line into `values`. Raises ConfigError in one line: an unknown flag, a value of another type, an
    argument that is none, one of the `needed` flags left out."""
    values.unparse_flags()
    try:
        rest = values(list(argv))
    except flags.Error as error:
        raise ConfigError(f"{' '.join(str(error).split())}; `python -m {program} --help` lists them") from error
    wanted = " and ".join(f"--{flag.name}" for flag in needed)
    if len(rest) > 1:
        raise ConfigError(f"{rest[1]!r} is no flag: give {wanted}, as in `{example}`")
    for flag in needed:
        if not flag.value:
            raise ConfigError(f"--{flag.name} is missing, as in `{example}`")


def leave(message: object, status: int) -> NoReturn:
    """Says why in one line, and ends."""
    print(f"zppo_jax: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(status)
