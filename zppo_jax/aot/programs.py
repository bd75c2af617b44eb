"""The programs of a run for a slice: the same functions that the trainer jits, from shapes alone.

Nothing is loaded and nothing is allocated on a device: `setup` makes the same engines and the same learner as for a
run, and a `Recorder` on the slice's mesh keeps XLA's numbers of each program. On a slice of several hosts the first
host's devices represent every host's, because each host samples by itself.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from zppo_jax import parallel, setup
from zppo_jax.aot.compiling import Recorder
from zppo_jax.aot.topologies import GIB, Topology
from zppo_jax.compilation import Compiler
from zppo_jax.config import Config
from zppo_jax.config.teacher import teacher_place
from zppo_jax.errors import ConfigError
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import config as configs
from zppo_jax.models.qwen3_5 import hf, quantised, sizes
from zppo_jax.parallel import Hosts
from zppo_jax.rollout.banned import banned_mask
from zppo_jax.rollout.engine import Engine
from zppo_jax.rollout.filters import Sampling
from zppo_jax.update import programs
from zppo_jax.warmstart import SHIPPED
from zppo_jax.zppo import get_method


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The arrays of a run on a slice, as shapes: `state` and the objective's reference model on `mesh`; the copy of the
    parameters to sample with and the teacher on `sampling_mesh`, that of one host. On a single host both meshes and
    copies are the same. A teacher with separate devices is on `teacher_mesh`."""

    mesh: jax.sharding.Mesh
    sampling_mesh: jax.sharding.Mesh
    student: qwen3_5.Config
    state: dict[str, Any]
    sampled: dict[str, Any]
    teacher: qwen3_5.Model | None
    reference: qwen3_5.Model | None
    teacher_mesh: jax.sharding.Mesh | None = None

    @property
    def hosts(self) -> Hosts:
        """The first of all hosts."""
        return Hosts(0, len(parallel.hosts_of(self.mesh)))

    def bytes_of(self, *names: str) -> int:
        """Bytes on one device of the named parts: the student's "params" and "optimizer", the "teacher" and the
        "reference"."""
        models = {"teacher": self.teacher, "reference": self.reference}
        parts = {name: model.params if model else {} for name, model in models.items()} | self.state
        return sum(parallel.device_bytes(parts[name]) for name in names)


def model_config(path: str, shipped: str) -> qwen3_5.Config:
    """The architecture in a directory's config.json, of a published size by the end of its hub id, or of the model that
    the package ships as "student" or "teacher"."""
    directory, key = Path(path) if path else SHIPPED / shipped, {"student": "model.path", "teacher": "teacher.path"}
    name = re.sub(r"-FP8$", "", path).rpartition("-")[2]
    try:
        return configs.from_directory(directory) if (directory / "config.json").is_file() else sizes.get(name)
    except (KeyError, ValueError, OSError) as error:
        reason = f" ({error})" if (directory / "config.json").is_file() else ""
        raise ConfigError(
            f"{key[shipped]} = {path!r} is neither a directory with a Qwen3.5 config.json nor a published size of "
            f"it{reason}"
        ) from error


def make_meshes(config: Config, topology: Topology) -> tuple[jax.sharding.Mesh, jax.sharding.Mesh]:
    """The mesh of the slice's devices by config.mesh, and the mesh that one host samples on. The latter is a slice by
    itself, because the compiler numbers the devices of a program from 0, and crashes on other numbers. So are the rest
    of a host beside the teacher's own devices."""
    if count := setup.num_teacher_devices(config):
        topology = _part(topology, topology.num_devices - count)
        config = dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, devices=0))
    mesh = setup.make_mesh(config, _devices(topology))
    of_host = setup.sampling_mesh(config, mesh)
    if of_host is mesh:
        return mesh, mesh
    return mesh, parallel.make_mesh(*of_host.devices.shape, devices=_devices(topology.part(of_host.size)))


def make_teacher_mesh(config: Config, topology: Topology) -> jax.sharding.Mesh | None:
    """The mesh of the teacher's own devices, as a slice by itself; None if it has none."""
    if not (count := setup.num_teacher_devices(config)):
        return None
    model = model_config(config.teacher.path, "teacher")
    return setup.teacher_mesh(config, model, _devices(_part(topology, count)))


def _part(topology: Topology, chips: int) -> Topology:
    """A part of a slice of one host. Raises ConfigError if there is no slice of that size."""
    hosts = {device.process_index for device in _devices(topology)}
    if len(hosts) > 1:
        raise ConfigError(f"teacher.devices on {len(hosts)} hosts of {topology.name} cannot be compiled: give one host")
    if chips not in topology.generation.grids:
        sizes = ", ".join(map(str, topology.generation.grids))
        raise ConfigError(
            f"teacher.devices leaves parts of {topology.name} of which one has {chips} chips: slices have {sizes}"
        )
    return topology.part(chips)


def _devices(topology: Topology) -> Sequence[Any]:
    given = {"chips_per_host_bounds": list(topology.chips_per_host)} if topology.chips_per_host else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology.libtpu, **given).devices
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"--topology={topology.name}: libtpu knows no such slice ({reason})") from error


def samples_teacher(config: Config) -> bool:
    """Whether the run samples from a teacher on the slice: one that is served or recorded has no programs here."""
    return get_method(config.method).needs_teacher(config) and teacher_place(config) == "local"


def shapes(
    config: Config,
    mesh: jax.sharding.Mesh,
    sampling_mesh: jax.sharding.Mesh,
    with_teacher: bool,
    teacher_mesh: jax.sharding.Mesh | None = None,
) -> Shapes:
    """The shapes of parameters, optimiser, teacher and reference, placed by the sharding rules."""
    student, method = model_config(config.model.path, "student"), get_method(config.method)
    teacher = model_config(config.teacher.path, "teacher") if with_teacher or method.reference else None
    params = hf.abstract_params(student, config.model.dtype)
    recipe = setup.recipe_of(config, student, teacher if method.reference else None)
    optimizer = jax.eval_shape(lambda params: programs.init_optimizer(params, recipe), params)
    state = {"params": params, "optimizer": optimizer}
    axes = programs.state_axes(state, recipe)  # runs a small computation, so not on the slice's devices
    with parallel.use(mesh):
        placed = parallel.placed_shapes(state, axes)
        reference = setup.placed_model(config, teacher) if teacher and method.reference else None
    with parallel.use(sampling_mesh):
        sampled = parallel.placed_shapes(params, axes["params"])
    float8 = float8_kernels(config, teacher) if teacher and with_teacher else frozenset[str]()
    sampled_teacher, place = None, Compiler(mesh=teacher_mesh or sampling_mesh)
    if teacher and with_teacher:
        place = setup.teacher_compiler(config, place, teacher, bool(float8))
        with parallel.use(place.mesh):
            sampled_teacher = setup.placed_model(config, teacher, float8)
    return Shapes(mesh, sampling_mesh, student, placed, sampled, sampled_teacher, reference, teacher_mesh)


def float8_kernels(config: Config, teacher: qwen3_5.Config) -> frozenset[str]:
    """The paths of the teacher's kernels that stay FP8: those of its directory, or as in Qwen's -FP8 checkpoints."""
    directory = Path(config.teacher.path or SHIPPED / "teacher")
    if (directory / "config.json").is_file():
        has_files = any(directory.glob("*.safetensors"))
        return setup.float8_kernels(config, directory, teacher) if has_files else frozenset()
    published = config.teacher.weights == "as_stored" and config.teacher.path.endswith("-FP8")
    return hf.published_float8_kernels(teacher) if published else frozenset()


@dataclasses.dataclass(frozen=True)
class Programs:
    """The samplers of a run: the student, and the teacher and its compressor if there is one."""

    student: Engine
    evaluation: Engine
    teacher: Engine | None = None
    compressor: Engine | None = None

    def engine_of(self, name: str) -> Engine:
        """The engine of a program, by the beginning of its name; of the student's two, the one with such slots."""
        engines = [engine for engine in (self.student, self.teacher, self.compressor) if engine is not None]
        found = max((one for one in engines if name.startswith(one.name)), key=lambda one: len(one.name))
        return self.evaluation if found is self.student and "penalised" in name else found

    def is_students(self, engine: Engine) -> bool:
        """Whether the engine samples from the student, for training or evaluation."""
        return engine in (self.student, self.evaluation)


def ask(config: Config, run: Shapes, compiler: Recorder) -> Programs:
    """Asks the compiler for every program of the run."""
    setup.check_hosts(config, run.mesh, run.hosts)
    sampler = compiler.on(run.sampling_mesh)
    student = setup.student_engine(config, run.student, banned_mask(run.student), sampler)
    learner = setup.learner_of(config, run.student, student, compiler, run.hosts, run.reference)
    evaluation = setup.evaluation_engine(config, student)
    setup.prepare_student(config, run.sampled, student, evaluation)
    learner.prepare(run.state)
    if run.teacher is None:
        return Programs(student, evaluation)
    method, model, params = get_method(config.method), run.teacher.config, run.teacher.params
    place = sampler if run.teacher_mesh is None else compiler.on(run.teacher_mesh)
    stays_float8 = quantised.is_quantised(params)
    teacher = setup.teacher_engine(config, model, banned_mask(model), student, place, stays_float8)
    if method.teacher_answers(config):
        teacher.prepare(params, (setup.teacher_sampling(config),))
    if not method.teacher_writes(config):
        return Programs(student, evaluation, teacher)
    compressor = setup.compressor_engine(config, teacher)
    compressor.prepare(params, (Sampling(temperature=0.0),))
    return Programs(student, evaluation, teacher, compressor)


def gib(size: float) -> float:
    return round(size / GIB, 3)
