"""Small real runs: a tiny model that eight questions have half taught, and the command line or `train.run` on it.

Nothing is replaced: the model reads real images, the scorer scores, the checkpoints are Orbax's. What makes the runs
quick is their size, programs that XLA hardly optimises, a compilation cache that all processes share, and that only
runs whose picture a test looks at draw one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from configs import tiny as tiny_config
from zppo_jax import train
from zppo_jax.config import Config, from_config_dict
from zppo_jax.data.digits import DigitsSource
from zppo_jax.models import qwen3_5
from zppo_jax.rollout.banned import banned_mask
from zppo_jax.run import checkpoint
from zppo_jax.run.metrics import depends_on_clock
from zppo_jax.run.metrics_file import MetricsWriter
from zppo_jax.run.rows import read_rows
from zppo_jax.setup import opening
from zppo_jax.warmstart import supervised, tiny
from zppo_jax.warmstart.examples import Example
from zppo_jax.zppo import prompts

ROOT = Path(__file__).parent.parent

SETTINGS: dict[str, Any] = {
    "num_steps": 6,
    "data.num_questions": 8,
    "prompt.buckets": (32, 192),
    "rollout.questions_per_step": 4,
    "rollout.group_size": 4,
    "rollout.max_new_tokens": 10,
    "rollout.slots": 8,
    "update.num_minibatches": 2,
    "update.rows_per_microbatch": 2,
    "update.row_tokens": 288,
    "zppo.augmentation_fraction": 0.5,
    "optimizer.learning_rate": 1e-3,
    "checkpoint.every": 3,
    "eval.every": 3,
    "eval.num_questions": 8,
}

NUM_SUPERVISED_STEPS = 32

CACHE_BYTES = 10**10
"""More than is ever there: but with a limit, jax locks the cache, and no process reads what another is writing."""
MIN_CACHED_SECONDS = 0.2
"""With a limit, jax also looks at all entries whenever it adds one: hundreds of small programs would take longer to
keep than to compile."""


def train_start(directory: Path) -> list[float]:
    """Writes a model that answers the eight training questions sometimes; returns the losses of its training."""
    processor = tiny.processor()
    config = tiny.config(processor)
    layers = dataclasses.replace(config.text, num_hidden_layers=2, full_attention_interval=2)  # one of each kind
    config = dataclasses.replace(config, text=layers)
    template = prompts.get_template("compact")
    questions = DigitsSource("rules", "train", SETTINGS["data.num_questions"], 0)
    examples = [
        Example(prompts.plain_text(one.text, template), one.images[0], f"</think>\n\n\\boxed{{{one.answer}}}")
        for one in (questions[index] for index in range(len(questions)))
    ]
    batch = supervised.pack(config, processor, examples, SETTINGS["prompt.buckets"][0], 16, 10)
    losses: list[float] = []
    params = supervised.train(
        qwen3_5.init_params(config, jax.random.key(0)),
        config,
        itertools.repeat((batch,)),
        NUM_SUPERVISED_STEPS,
        1e-2,
        banned_mask(config, processor),
        lambda _, loss: losses.append(loss),
    )
    qwen3_5.save(qwen3_5.Model(config, params), directory)
    processor.save(directory)
    return losses


def settings(start: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys and values of a run from `start`; `rollout__group_size=2` changes rollout.group_size."""
    paths = {"model.path": str(start), "teacher.path": str(start)}
    return SETTINGS | paths | {name.replace("__", "."): value for name, value in changes.items()}


def tree(start: Path, method: str = "zppo", **changes: Any) -> Any:
    """The configuration of a small run as the files in configs/ give it."""
    tree: Any = tiny_config.get_config(method)
    for name, value in settings(start, changes).items():
        *sections, key = name.split(".")
        node = tree
        for section in sections:
            node = node[section]
        node[key] = value
    return tree


def config(start: Path, method: str = "zppo", **changes: Any) -> Config:
    return from_config_dict(tree(start, method, **changes))


def arguments(start: Path, workdir: Path, method: str = "zppo", **changes: Any) -> list[str]:
    """The command line that means the same as `config`."""
    words = {
        name: ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in settings(start, changes).items()
    }
    flags = [f"--config.{name}={value}" for name, value in words.items()]
    return [f"--config=configs/tiny.py:{method}", f"--workdir={workdir}", *flags]


def free_port() -> int:
    """A port on which nobody listens."""
    with contextlib.closing(socket.socket()) as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def command(
    arguments: list[str], script: str = "from zppo_jax import main; main.main()", timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """The real command in a separate process; `script` may do something to the process before it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


def run(start: Path, workdir: Path, method: str = "zppo", *, drawn: bool = False, **changes: Any) -> Path:
    """Trains in this process, without a picture at the end unless `drawn`; returns the run directory."""
    with contextlib.nullcontext() if drawn else undrawn():
        train.run(config(start, method, **changes), workdir)
    return workdir


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """Runs leave no curves.png meanwhile: drawing it takes a third of a small run's time, and few tests look at it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "draw_curves", lambda workdir: None)
        yield


@contextlib.contextmanager
def quick_compilation(cache: Path) -> Iterator[None]:
    """XLA hardly optimises, here and in child processes, and what it compiles is kept in `cache`; everything is as
    before at the end."""
    values: dict[str, Any] = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(cache),
        "jax_compilation_cache_max_size": CACHE_BYTES,
        "jax_persistent_cache_min_compile_time_secs": MIN_CACHED_SECONDS,
    }
    before = {name: jax.config.values[name] for name in values}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name.upper(), str(value))
        _configure(values)
        try:
            yield
        finally:
            _configure(before)


def _configure(values: dict[str, Any]) -> None:
    for name, value in values.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # jax looks at the directory once only


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """The names of the programs that XLA compiles (or takes from the cache) meanwhile."""
    names: list[str] = []
    active = True

    def listen(event: str, duration_secs: float, **details: Any) -> None:
        del duration_secs
        if active and event == "/jax/core/compile/backend_compile_duration":
            names.append(str(details.get("fun_name", "?")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        active = False  # jax offers no way to take a listener back


@contextlib.contextmanager
def after_row(action: Callable[[int], None]) -> Iterator[None]:
    """Calls `action(step)` whenever a row of metrics has been written: the moment between a step and its checkpoint."""
    write = MetricsWriter.write

    def write_and_act(self: MetricsWriter, step: int, values: Any) -> None:
        write(self, step, values)
        action(step)

    MetricsWriter.write = write_and_act
    try:
        yield
    finally:
        MetricsWriter.write = write


SIGNALLED = """
import os, signal, time
from tests import runs
from zppo_jax import main

def send(step):
    if step == {step}:
        while not os.path.exists({awaited!r}):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.{signal})

with runs.undrawn(), runs.after_row(send):
    main.main()
"""
"""A script for `command`: the process gets a signal when the row of a step is written, and a checkpoint that is being
written in the background, `awaited`, is there."""


# ---------------------------------------------------------------- what a run leaves


def metrics(workdir: Path) -> list[dict[str, Any]]:
    return read_rows(workdir / "metrics.jsonl")


def timeless(workdir: Path) -> list[str]:
    """The rows of metrics without what depends on the clock, as text: equal only when equal to the bit."""
    rows = [{name: value for name, value in row.items() if not depends_on_clock(name)} for row in metrics(workdir)]
    return [json.dumps(row) for row in rows]


def samples(workdir: Path) -> list[dict[str, Any]]:
    return read_rows(workdir / "samples.jsonl")


def saved_steps(workdir: Path) -> list[int]:
    """The checkpoints that are there."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def assert_same_end(one: Path, other: Path, step: int) -> None:
    """Two runs ended alike: metrics, samples, parameters, optimiser, data position and replay buffer, to the bit."""
    assert timeless(one) == timeless(other)
    assert (one / "samples.jsonl").read_bytes() == (other / "samples.jsonl").read_bytes()
    folders = [run / "checkpoints" / str(step) for run in (one, other)]
    host, other_host = (json.loads((folder / "host" / "metadata").read_text()) for folder in folders)
    assert host == other_host
    state, other_state = (ocp.StandardCheckpointer().restore((folder / "state").absolute()) for folder in folders)
    assert checkpoint.equal(state, other_state)
