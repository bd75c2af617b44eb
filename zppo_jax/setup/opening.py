"""Opens a run: its hosts, directory, devices and parts, in the order in which they can fail."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from zppo_jax import compilation, parallel
from zppo_jax.command.heartbeat import Heartbeat
from zppo_jax.config import Config
from zppo_jax.parallel import Hosts
from zppo_jax.report import draw_curves
from zppo_jax.run import saved
from zppo_jax.run.checkpoint import Checkpoints
from zppo_jax.run.console import RunConsole
from zppo_jax.run.directory import RunDirectory
from zppo_jax.run.quiet import silence_late_errors
from zppo_jax.run.records import Records
from zppo_jax.run.stop import StopRequest
from zppo_jax.setup.checkpoints import read_architecture
from zppo_jax.setup.components import Components, build
from zppo_jax.setup.devices import (
    describe_mesh,
    describe_teacher_mesh,
    find_hosts,
    make_mesh,
    sampling_mesh,
    teacher_devices,
    teacher_mesh,
)
from zppo_jax.update.programs import State
from zppo_jax.warmstart import directories


@dataclasses.dataclass
class Opened:
    """The parts of an open run with the student's initial state, its directory and its console."""

    components: Components
    state: State | None
    directory: RunDirectory
    checkpoints: Checkpoints
    records: Records
    console: RunConsole
    stop: StopRequest

    def take_state(self) -> State:
        """Returns the initial state, once: the caller then holds the only reference, and can free the arrays."""
        state, self.state = self.state, None
        assert state is not None
        return state

    def show_files(self) -> None:
        """Draws the curves and lists the files of the run."""
        try:
            draw_curves(self.directory.path)
        except ValueError as error:
            self.console.message(f"no curves: {error}")
        self.console.files(self.directory.path)


@contextlib.contextmanager
def open_run(config: Config, workdir: Path, heartbeat: Heartbeat | None = None) -> Iterator[Opened]:
    """Opens everything that a run needs, and closes it at the end of the block.

    Raises ConfigError and RunError, in one line, on the host that fails.
    """
    compilation.use_cache()
    with (heartbeat or Heartbeat()).during("finding the devices"):
        compilation.keep_memory()
        silence_late_errors()
        hosts = find_hosts(config)
    with contextlib.ExitStack() as stack:
        directory = _directory(config, workdir, hosts, stack)
        kept = (config.checkpoint.keep, config.checkpoint.keep_best)
        checkpoints = stack.enter_context(Checkpoints(directory.checkpoints, *kept, hosts))
        stack.enter_context(hosts.watched())
        stop = stack.enter_context(StopRequest())
        console = _console(config, hosts, heartbeat, stack)
        with hosts.together("loading the models"), console.heartbeat.during("making the models, data and programs"):
            components, state = _build(config, directory, hosts, console, stop, stack)
        stack.callback(components.close)
        with hosts.together("opening the records"):
            records = Records(directory, config, checkpoints.latest_step, hosts, console.message)
        stack.callback(records.close)
        opened = Opened(components, state, directory, checkpoints, records, console, stop)
        del state  # this frame lives for the whole run, and must not hold the arrays
        yield opened


def _directory(config: Config, workdir: Path, hosts: Hosts, stack: contextlib.ExitStack) -> RunDirectory:
    with hosts.together("opening the run directory"):
        directory = stack.enter_context(RunDirectory(workdir, hosts.index))
        if hosts.leads:
            step, values = saved.newest(directory.checkpoints)
            directory.accept(config, step, values.get("config"))
    directory.require_shared(hosts.gather(directory.mark, "the marks of the run directory"))
    return directory


def _console(config: Config, hosts: Hosts, heartbeat: Heartbeat | None, stack: contextlib.ExitStack) -> RunConsole:
    """The console: the first host's writes, those of the other hosts are silent."""
    if hosts.leads:
        return stack.enter_context(RunConsole(config.num_steps, heartbeat=heartbeat))
    silent = stack.enter_context(open(os.devnull, "w"))  # noqa: SIM115
    return stack.enter_context(RunConsole(config.num_steps, silent, heartbeat=Heartbeat()))


def _build(
    config: Config,
    directory: RunDirectory,
    hosts: Hosts,
    console: RunConsole,
    stop: StopRequest,
    stack: contextlib.ExitStack,
) -> tuple[Components, Any]:
    """Makes the parts, with one compiler for each mesh: that of the update, that of sampling, and the teacher's own."""
    student, teacher = directories(config, directory.path, console.message)
    mesh = make_mesh(config)
    stack.enter_context(parallel.use(mesh))

    def compiling(for_mesh: Mesh) -> compilation.Compiler:
        made = stack.enter_context(compilation.compiler(console.compiling, for_mesh))
        console.heartbeat.watch(made.standing)
        return made

    compiler, local, own = compiling(mesh), sampling_mesh(config, mesh), _mesh_of_teacher(config, teacher)
    sampler = compiler if local is mesh else compiling(local)
    report = stop.interrupting(console.status) if hosts.count == 1 else console.status
    components, state = build(
        config,
        student,
        teacher,
        compiler,
        report,
        hosts,
        sampler,
        console.heartbeat,
        directory.host_folder,
        console.message,
        None if own is None else compiling(own),
    )
    for line in describe_mesh(config, mesh, state["params"], components.learner.recipe.model, hosts):
        console.message(line)
    if own is not None:
        console.message(describe_teacher_mesh(own))
    return components, state


def _mesh_of_teacher(config: Config, directory: Path) -> Mesh | None:
    """The mesh of the teacher's own devices; None if it has none."""
    own = teacher_devices(config)
    return teacher_mesh(config, read_architecture("teacher.path", directory), own) if own else None
