"""Configuration files: Python programs with a `get_config`, loaded from any folder, and mistakes in one line."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zppo_jax
from zppo_jax.config import ConfigTree
from zppo_jax.errors import ConfigError, one_line

_ROOT = Path(zppo_jax.__file__).resolve().parent.parent
"""The root of the repository, if the package is in it: in a clone, or installed with `-e`."""


def load_config(path: str) -> ConfigTree:
    """Loads the configuration of `FILE.py:METHOD`, without overrides; raises `ConfigError` if that fails."""
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
    except Exception as error:  # a config file is a program: whatever it raises becomes one line
        how = f"; {_MISSING}" if isinstance(error, ModuleNotFoundError) and error.name == "configs" else ""
        raise ConfigError(f"--config={path}: the file does not load, {one_line(error)}{how}") from error


_MISSING = "configs/ is not installed with the package: clone the repository and set PYTHONPATH to the clone"


@contextlib.contextmanager
def importable(path: str) -> Iterator[None]:
    """Lets a configuration file import like a script, wherever it is and the command is run: first its neighbours, also
    as `configs.x` if their folder has that name; last the files of the repository's configs/. A package `configs` (with
    an __init__.py) next to the file or in the current folder replaces the repository's.
    """
    folder, before = Path(path.partition(":")[0]).resolve().parent, list(sys.path)
    neighbours = [folder.parent, folder] if folder.name == "configs" else [folder]
    ours = _ROOT / "configs" if (_ROOT / "configs").is_dir() else None
    sys.path[:] = [*map(str, neighbours), *before, *([str(_ROOT)] if ours else [])]
    try:
        with _joining(neighbours[0] / "configs", ours):
            yield
    finally:
        sys.path[:] = before


@contextlib.contextmanager
def _joining(theirs: Path, ours: Path | None) -> Iterator[None]:
    """Joins both folders into one package, `theirs` first, if it is a folder without an __init__.py: Python would not
    look into it."""
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
    return ", ".join(
        str(path) for path in sorted(folder.glob("*.py")) if path.stem not in ("__init__", "common", "paper")
    )
