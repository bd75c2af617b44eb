"""A tokenizer in a folder, the miniature corpora, and a builder that runs in this process."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorflow_datasets")
pytest.importorskip("pyarrow")

from tests.data import miniature
from zppo_jax.command.heartbeat import Heartbeat
from zppo_jax.data.progress import Progress
from zppo_jax.data.zppo77k import recipe
from zppo_jax.data.zppo77k.build import Build, Plan
from zppo_jax.data.zppo77k.recipe import Settings
from zppo_jax.warmstart import tiny

Builder = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("tokenizer")
    tiny.processor().save(directory)
    return str(directory)


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> miniature.Miniature:
    return miniature.write(tmp_path_factory.mktemp("corpora"))


@pytest.fixture(scope="session")
def build(corpora: miniature.Miniature, tokenizer: str) -> Builder:
    """Builds the miniature, or other folders, into `out`; keywords are settings, or fields of the plan."""

    def run(out: Path, include: tuple[str, ...] = (), **changes: Any) -> dict[str, Any]:
        plan: dict[str, Any] = {
            "vero": str(corpora.vero),
            "mmfinereason": str(corpora.mmfinereason),
            "tokenizer": tokenizer,
        }
        plan |= {name: changes.pop(name) for name in list(changes) if name in Plan.__dataclass_fields__}
        log = changes.pop("log", io.StringIO())
        settings = Settings(**changes)
        made = Plan(out=out, rows=recipe.chosen(include), settings=settings, **plan)
        return Build(made, Progress(log, Heartbeat())).run()

    return run


def files_of(directory: Path) -> dict[str, bytes]:
    """The content of every file of a folder by its path."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "zppo_jax.data.zppo77k", *flags]
