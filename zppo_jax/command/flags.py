"""Flags of the commands: separate sets of absl flags, read without jax, with mistakes in one line."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from zppo_jax.command.exits import exit_with
from zppo_jax.errors import ConfigError


def run(argv: Sequence[str] | None, text: str, work: Callable[[Sequence[str]], None]) -> None:
    """Runs a command: prints the help `text` if --help was given, else calls `work` with the command line.

    A ConfigError ends the process with one line and status 2, Ctrl-C with one and status 130, also before `work` has
    begun to handle it.
    """
    argv = sys.argv if argv is None else argv
    if asks_for_help(argv):
        print(text, end="")
        return
    try:
        work(argv)
    except ConfigError as error:
        exit_with(error, 2)
    except KeyboardInterrupt:
        exit_with("stopped", 130)


def asks_for_help(argv: Sequence[str]) -> bool:
    """Whether a command line has --help, in any of absl's spellings."""
    return any(argument in ("--help", "-help", "-h", "--helpfull", "-?") for argument in argv[1:])


def read(values: flags.FlagValues, argv: Sequence[str], program: str, example: str, needed: Sequence[Any]) -> None:
    """Reads a command line into `values`. Raises ConfigError in one line: an unknown flag, a value of another type, an
    argument that is not a flag, one of the `needed` flags left out."""
    values.unparse_flags()
    try:
        rest = values(list(argv))
    except flags.Error as error:
        raise ConfigError(f"{' '.join(str(error).split())}; `python -m {program} --help` lists them") from error
    wanted = " and ".join(f"--{flag.name}" for flag in needed)
    if len(rest) > 1:
        raise ConfigError(f"{rest[1]!r} is not a flag: give {wanted}, as in `{example}`")
    for flag in needed:
        if not flag.value:
            raise ConfigError(f"--{flag.name} is missing, as in `{example}`")


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a model: the mesh (-1: devices that the other axes leave; `tensor` 0: as many as fit the model),
    and GB of each device for caches (None: all that is free)."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 0
    cache_gigabytes: float | None = None


def device_flags(values: flags.FlagValues) -> Callable[[], Devices]:
    """Defines the flags about devices, explained by `device_help`; returns a function that reads them."""
    sizes: dict[str, Any] = {
        axis: flags.DEFINE_integer(f"mesh_{axis}", getattr(Devices, axis), axis, lower_bound=-1, flag_values=values)
        for axis in ("data", "fsdp", "tensor")
    }
    gigabytes = flags.DEFINE_float("cache_gigabytes", None, "of each device", lower_bound=0.0, flag_values=values)
    return lambda: Devices(**{axis: flag.value for axis, flag in sizes.items()}, cache_gigabytes=gigabytes.value)


_DEVICE_HELP = """\
--mesh_data=-1|copies of the model, each with its part of the slots; -1: as many as all devices make
--mesh_tensor=0|devices over which a copy is divided; 0: as many as divide its key-value heads, so that
|caches are divided too; more of them for a model that does not fit otherwise
--mesh_fsdp=1|divides weights and slots as in training; all weights travel for every chunk of tokens
--cache_gigabytes=GB|of each device for caches: fewer slots where they do not fit; without it what is free
|once the model is loaded, with a margin (CPUs do not say: no limit)"""


def device_help(width: int) -> str:
    """The flags about devices as a part of a help text, explained from column `width` on."""
    rows = [line.split("|") for line in _DEVICE_HELP.splitlines()]
    return "\n".join(f"  {flag:<{width - 3}} {text}" for flag, text in rows)


def last_value(argv: Sequence[str], flag: str) -> str | None:
    """The value of `--flag=VALUE` or `--flag VALUE`; the last one, as in absl."""
    value = None
    for position, argument in enumerate(argv):
        if argument == "--":
            break
        if argument in (f"--{flag}", f"-{flag}") and position + 1 < len(argv):
            value = argv[position + 1]
        elif argument.startswith((f"--{flag}=", f"-{flag}=")):
            value = argument.split("=", 1)[1]
    return value
