"""What the command lines share: absl flags of their own and configuration files, read without jax, and mistakes in one
line."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags

import zppo_jax
from zppo_jax.config import ConfigError, ConfigTree

_ROOT = Path(zppo_jax.__file__).resolve().parent.parent
"""Of the repository, where the package was not copied out of it: in a clone and where it is installed with `-e`."""


def helped(argv: Sequence[str], text: str) -> bool:
    """Prints the help where it is asked for, and says whether."""
    asked = any(argument in ("--help", "-help", "-h", "--helpfull", "-?") for argument in argv[1:])
    if asked:
        print(text, end="")
    return asked


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


@dataclasses.dataclass(frozen=True)
class Devices:
    """On what a model runs: the mesh (-1: devices that the other axes leave; `tensor` 0: as many as fit the model), and
    GB of each device for caches (None: what is free)."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 0
    cache_gigabytes: float | None = None


def device_flags(values: flags.FlagValues) -> Callable[[], Devices]:
    """Defines the flags about devices, explained by `device_help`; what it returns reads them."""
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
    """The value of `--flag=VALUE` or `--flag VALUE`, the last one as absl has it."""
    value = None
    for position, argument in enumerate(argv):
        if argument == "--":
            break
        if argument in (f"--{flag}", f"-{flag}") and position + 1 < len(argv):
            value = argv[position + 1]
        elif argument.startswith((f"--{flag}=", f"-{flag}=")):
            value = argument.split("=", 1)[1]
    return value


def load_config(path: str) -> ConfigTree:
    """What `FILE.py:METHOD` stands for, with nothing overridden; raises `ConfigError` when that cannot be had."""
    file, _, method = path.partition(":")
    if not Path(file).is_file():
        raise ConfigError(f"--config={path}: there is no file {file!r}; try {_nearby_config(file)}")
    try:
        spec = importlib.util.spec_from_file_location("_zppo_config", file)
        assert spec is not None and spec.loader is not None, "a file that does not end in .py"
        module = importlib.util.module_from_spec(spec)
        with importable(path):
            spec.loader.exec_module(module)
            return module.get_config(*([method] if method else []))
    except Exception as error:  # a config file is a program: whatever it raises, a person wants one line
        how = f"; {_MISSING}" if isinstance(error, ModuleNotFoundError) and error.name == "configs" else ""
        raise ConfigError(f"--config={path}: the file does not load, {one_line(error)}{how}") from error


_MISSING = "configs/ is not installed with the package: clone the repository and set PYTHONPATH to the clone"


@contextlib.contextmanager
def importable(path: str) -> Iterator[None]:
    """Lets a configuration file import, wherever it lies and the command is run, what Python lets a script import:
    first its neighbours, also as `configs.x` where that is the name of their folder; and last the files of the
    repository's configs/. A package `configs` (with an __init__.py) beside the file or in the current folder is taken
    instead of the repository's.
    """
    folder, before = Path(path.partition(":")[0]).resolve().parent, list(sys.path)
    neighbours = [folder.parent, folder] if folder.name == "configs" else [folder]
    ours = _ROOT / "configs" if (_ROOT / "configs").is_dir() else None
    sys.path[:] = [*map(str, neighbours), *before, *([str(_ROOT)] if ours else [])]
    try:
        with _joined(neighbours[0] / "configs", ours):
            yield
    finally:
        sys.path[:] = before


@contextlib.contextmanager
def _joined(theirs: Path, ours: Path | None) -> Iterator[None]:
    """Both folders as one package, `theirs` first, where it is a folder without an __init__.py: Python would not look
    into it."""
    if ours is None or theirs == ours or not theirs.is_dir() or (theirs / "__init__.py").exists():
        yield
        return
    folders: Any = importlib.import_module("configs").__path__
    folders.insert(0, str(theirs))
    try:
        yield
    finally:
        folders.remove(str(theirs))


def _nearby_config(file: str) -> str:
    folders = (Path(file).parent, Path("configs"), _ROOT / "configs")
    folder = next((folder for folder in folders if any(folder.glob("*.py"))), None)
    if folder is None:
        return f"a file of the repository's configs/; {_MISSING}"
    return ", ".join(str(path) for path in sorted(folder.glob("*.py")) if path.stem not in ("__init__", "common"))


def one_line(error: BaseException) -> str:
    """Kind and message of an error."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


_FIXES = {
    errno.ENOSPC: "free some space, then run the same command to continue",
    errno.EFBIG: "raise the limit on the size of files, then run the same command to continue",
    errno.EDQUOT: "the quota is used up; free some space, then run the same command to continue",
    errno.EROFS: "choose a --workdir that can be written",
    errno.EACCES: "choose a --workdir that can be written",
    errno.ESTALE: "the file system was mounted again; the same command continues",
    errno.EIO: "the disk or the network to it fails; the same command continues",
}


def disk_fault(error: BaseException, workdir: Path) -> str | None:
    """The line about an error of the disk: one that a person can fix anywhere, or any about a file of the run
    directory, where something lies that no run has put there. None for what is a fault of the program."""
    if not isinstance(error, OSError):
        return None
    named = isinstance(error.filename, str) and Path(error.filename).absolute().is_relative_to(workdir.absolute())
    gone = error.errno == errno.ENOENT
    local = f"{'it was deleted meanwhile;' if gone else 'move it away, then'} run the same command to continue"
    fix = _FIXES.get(error.errno or 0, local if named else None)
    return fix and f"{error.filename or workdir}: {error.strerror}; {fix}"


def leave(message: object, status: int) -> NoReturn:
    """Says why in one line, and ends."""
    print(f"zppo_jax: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(status)
