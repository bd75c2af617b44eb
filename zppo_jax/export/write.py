"""The weights of a checkpoint, and the processor of the model that the run started from, as a Hugging Face directory.

Only the parameters are read, on one CPU device: a checkpoint of any mesh exports on one host without accelerators.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.console
import rich.progress

from zppo_jax.command.heartbeat import Heartbeat
from zppo_jax.errors import ConfigError, WorkdirError
from zppo_jax.files import read_file, write_atomically
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import config as configs
from zppo_jax.models.qwen3_5 import hf
from zppo_jax.models.qwen3_5.parameters import count
from zppo_jax.processor import Processor
from zppo_jax.run import checkpoint, saved
from zppo_jax.run.directory import require_name
from zppo_jax.warmstart import SHIPPED

PROCESSOR_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)
"""The files that are copied unchanged from the origin, if it has them."""


def export(
    run: Path,
    out: Path,
    step: str | None = None,
    dtype: str | None = None,
    origin: str | None = None,
    heartbeat: Heartbeat | None = None,
) -> str:
    """Write the student of a run to `out`; returns the line that reports it.

    Args:
      run: the run directory; it may be in use.
      out: a directory that does not exist, is empty, or holds an earlier export, which is replaced.
      step: the step of the checkpoint, or "best" for the best held-out accuracy; None for the newest.
      dtype: the dtype of the weights; None for the checkpoint's.
      origin: the Hugging Face directory that the run started from; None for the one that its config.json names.
      heartbeat: shows what is being read and written.

    Raises:
      ConfigError: a wrong argument.
      WorkdirError: the run has no such checkpoint, or it is damaged.
      FileNotFoundError, ValueError: the origin is missing or incomplete; CheckpointError: `out` cannot be written.
    """
    heartbeat = heartbeat or Heartbeat()
    chosen = _choose_step(run, step)
    source = _origin(run, origin)
    config = configs.from_directory(source)
    processor = Processor.from_directory(source)
    shapes = qwen3_5.abstract_params(config)
    report = functools.partial(print, file=sys.stderr)
    with heartbeat.during(f"reading step {chosen} of {run}, {count(shapes) / 1e6:,.1f} M parameters"):
        params = checkpoint.restore_params(run / "checkpoints", chosen, shapes, report)
    config = dataclasses.replace(config, stop_token_ids=processor.stop_ids, pad_token_id=processor.pad_id)
    nbytes = 0
    console = rich.console.Console(stderr=True)
    bar = rich.progress.Progress(console=console, transient=True, disable=not console.is_terminal)
    total = count(shapes)
    with hf.staged(out) as directory, bar as progress, heartbeat.during(f"writing {out}") as report:
        task = progress.add_task(f"writing {out}", total=total)

        def on_tensor(tensor: np.ndarray) -> None:
            nonlocal nbytes
            nbytes += tensor.nbytes
            progress.advance(task, tensor.size)
            report(f"{nbytes / 1e9:.2f} GB, {100 * progress.tasks[0].completed / total:.0f} % of all parameters")

        hf.write_model(directory, config, params, dtype, on_tensor=on_tensor)
        _write_processor(directory, source, processor)
    kinds = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(params)})
    return (
        f"step {chosen} of {run} is in {out}: {count(shapes) / 1e6:,.1f} M parameters, {nbytes / 1e6:,.1f} MB in "
        f"{dtype or ' and '.join(kinds)}; transformers, vLLM and lm-eval load it"
    )


def _choose_step(run: Path, step: str | None) -> int:
    require_name(run, "--checkpoint")
    if not (run / "config.json").is_file():
        raise ConfigError(f"--checkpoint={run} is not a run directory (it has no config.json): give a run's --workdir")
    steps = saved.saved_steps(run / "checkpoints")
    if not steps:
        raise WorkdirError(f"{run} holds no checkpoint yet: let the run reach its first one (checkpoint.every steps)")
    if step is None:
        return steps[-1]
    best = saved.best_step(run / "checkpoints")
    if step == "best" and best is not None:
        return best
    if step not in map(str, steps):
        evaluated = "" if best is None else f", {best} is the best"
        raise ConfigError(
            f"--step={step}: {run} holds the checkpoints of steps {', '.join(map(str, steps))}{evaluated}"
        )
    return int(step)


def _origin(run: Path, given: str | None) -> Path:
    """The Hugging Face directory of the model that the run started from: its processor is the export's."""
    if given is not None:
        return hf.resolve(given)
    settings = _settings(run / "config.json")
    path, rebuilt = settings["model"]["path"], settings["warmstart"]["rebuild"]
    if not path:
        return (run / "warmstart" if rebuilt else SHIPPED) / "student"
    try:
        return hf.resolve(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the model.path = {path!r} with which {run} was started is not to be found from here: name its "
            "Hugging Face directory with --origin=DIR"
        ) from error


def _settings(file: Path) -> dict[str, Any]:
    """The settings of a run that are needed here; the others may be from another version of this package."""
    try:
        content = json.loads(read_file(file).decode())
        path, rebuild = content["model"]["path"], content["warmstart"]["rebuild"]
        if not isinstance(path, str):
            raise TypeError(f"model.path = {path!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WorkdirError(f"{file} is damaged ({error!r}): restore it, or name the model with --origin=DIR") from error
    return {"model": {"path": path}, "warmstart": {"rebuild": rebuild}}


def _write_processor(directory: Path, source: Path, processor: Processor) -> None:
    """Copies the origin's files, and writes those that it lacks. Both stop ids end a response in any case."""
    processor.save(directory)
    generation = json.loads((directory / "generation_config.json").read_text())
    for name in PROCESSOR_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
    original = source / "generation_config.json"
    if original.is_file():  # the origin's sampling settings stay
        generation = json.loads(original.read_text()) | generation
    write_atomically(directory / "generation_config.json", json.dumps(generation, indent=2).encode() + b"\n")
