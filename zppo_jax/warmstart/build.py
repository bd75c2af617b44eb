"""Trains student and teacher, and finds those shipped with the package."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import rich.progress

from zppo_jax.config import Config
from zppo_jax.errors import ConfigError
from zppo_jax.files import SHIPPED, write_atomically
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import Model
from zppo_jax.processor import Processor
from zppo_jax.rollout.banned import banned_mask
from zppo_jax.warmstart import recipe as recipes
from zppo_jax.warmstart import supervised, tiny
from zppo_jax.warmstart.recipe import Recipe, Stage
from zppo_jax.zppo import get_method

STAMP = "warmstart.json"


def build(target: Path, recipe: Recipe | None = None, message: Callable[[str], None] = print) -> None:
    """Train both models into `target`/student and `target`/teacher; a finished part is kept, so it can be resumed.

    Both continue from a common base, which is kept in `target`/base until they are done.
    """
    recipe = recipe or Recipe()
    processor = tiny.processor()
    start = qwen3_5.init_params(tiny.config(processor), jax.random.key(recipe.base.seed))
    if all(read_stamp(target / name) == _stamp(recipe) for name in ("student", "teacher")):
        return
    base = _stage(target / "base", recipe.base, recipe, start, processor, message)
    for name, stage in (("student", recipe.student), ("teacher", recipe.teacher)):
        _stage(target / name, stage, recipe, base, processor, message)
    shutil.rmtree(target / "base")


def _stamp(recipe: Recipe) -> dict[str, str]:
    return {"fingerprint": recipes.fingerprint(recipe)}


def _stage(
    directory: Path, stage: Stage, recipe: Recipe, params: Any, processor: Processor, message: Callable[[str], None]
) -> Any:
    """Train one stage from `params` into `directory`, unless it is there; returns its parameters."""
    if read_stamp(directory) != _stamp(recipe):
        config = tiny.config(processor)
        trained = _train(directory.name, stage, recipe, jax.tree.map(jnp.copy, params), processor, config)
        shutil.rmtree(directory, ignore_errors=True)  # a stamp is never next to weights of another recipe
        qwen3_5.save(Model(config, trained), directory)
        processor.save(directory)
        write_atomically(directory / STAMP, json.dumps(_stamp(recipe), indent=2).encode() + b"\n")
        message(f"{directory.name} written to {directory}")
    return qwen3_5.load(directory).params


def _train(name: str, stage: Stage, recipe: Recipe, params: Any, processor: Processor, config: qwen3_5.Config) -> Any:
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.TextColumn("loss {task.fields[loss]:.3f}"))
    with rich.progress.Progress(*columns) as progress:
        task = progress.add_task(
            f"warm start, {name} (the first step compiles)", total=stage.num_steps, loss=float("nan")
        )

        def on_step(step: int, loss: float) -> None:
            progress.update(task, completed=step, loss=loss, description=f"warm start, {name}")

        stream = recipes.batches(stage, recipe.mixture, config, processor, teacher=name == "teacher")
        mask_V = banned_mask(config, processor)
        return supervised.train(params, config, _ahead(stream), stage.num_steps, stage.learning_rate, mask_V, on_step)


def _ahead(stream: Iterator[Any]) -> Iterator[Any]:
    """Draws the next examples in a thread while the device computes; an error in the thread is raised here."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, stream)
        while True:
            batch = coming.result()
            coming = pool.submit(next, stream)
            yield batch


def read_stamp(directory: Path) -> dict[str, Any] | None:
    """Reads the stamp of a built directory, which names its recipe; None if it does not exist or is not finished."""
    try:
        return json.loads((directory / STAMP).read_text())
    except (OSError, ValueError):
        return None


def directories(config: Config, workdir: Path, message: Callable[[str], None] = print) -> tuple[Path, Path]:
    """The checkpoint directories of student and teacher that a configuration names.

    An empty path means the warm start: the shipped one, or one built in the run directory. Raises ConfigError if it is
    missing. A model that the method does not need is not required.
    """
    paths = {"student": config.model.path, "teacher": config.teacher.path}
    needed = [name for name in paths if name == "student" or get_method(config.method).loads_teacher(config)]
    target = SHIPPED
    if not all(paths[name] for name in needed):
        if config.warmstart.rebuild:
            target = workdir / "warmstart"
            build(target, message=message)
        _check(target, [name for name in needed if not paths[name]], message)
    student, teacher = (Path(path) if path else target / name for name, path in paths.items())
    return student, teacher


def _check(target: Path, names: Sequence[str], message: Callable[[str], None]) -> None:
    """Raises ConfigError for models that do not exist; prints a message for models of another recipe.

    The latter is not an error at run time: the fingerprint covers random draws, which another version of NumPy may
    reorder, and weights of another shape are refused when they are loaded. Tests check that the two agree.
    """
    for name in names:
        stamp = read_stamp(target / name)
        if stamp is None:
            raise ConfigError(
                f"warmstart.rebuild = False, but the {name} in {target} is missing: set "
                "--config.warmstart.rebuild=True, or run `python -m zppo_jax.warmstart`"
            )
        if stamp != _stamp(Recipe()):
            message(f"the {name} in {target} was made by another recipe; --config.warmstart.rebuild=True rebuilds it")
