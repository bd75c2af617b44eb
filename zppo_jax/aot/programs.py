"""The programs of a run, compiled for a slice: the very functions that the trainer jits, from shapes alone.

Nothing is loaded and nothing is allocated on a device: `setup` makes the same engines and the same learner as for a
run, and a compiler whose mesh is the slice's records what XLA says of each program.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from zppo_jax import parallel, setup
from zppo_jax.aot.topologies import GIB, Topology
from zppo_jax.compilation import Compiler, Kind, Program
from zppo_jax.config import Config, ConfigError
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import config as configs
from zppo_jax.models.qwen3_5 import hf, sizes, vlm
from zppo_jax.rollout.filters import Sampling
from zppo_jax.rollout.generate import banned_mask
from zppo_jax.update import step
from zppo_jax.warmstart import SHIPPED

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}


@dataclasses.dataclass
class Compiled:
    """What the compiler says of one program. Bytes are those of one device; `error` where it does not fit."""

    name: str
    seconds: float
    argument: int = 0
    temp: int = 0
    peak: int = 0
    needed: int = 0
    collectives: dict[str, int] = dataclasses.field(default_factory=dict)
    error: str = ""


class Recorder(Compiler):
    """Compiles one program after the other for the devices of its mesh, and keeps no program but what is said of it.

    `wanted` says by name which programs count; of the others nothing is even traced.
    """

    def __init__(self, mesh: jax.sharding.Mesh, wanted: Callable[[str], bool], report: Callable[[str], None]) -> None:
        super().__init__(mesh=mesh, num_threads=1)
        self._wanted, self._report = wanted, report
        self._asked: dict[str, tuple[Callable[[], Any], jax.sharding.Mesh | None]] = {}

    def program(
        self, name: str, lower: Callable[[], Any], kind: Kind = "sequence", mesh: jax.sharding.Mesh | None = None
    ) -> Program:
        del kind  # compile options are those of other platforms
        self._asked.setdefault(name, (lower, mesh or self.mesh))
        return None  # type: ignore[return-value]  # nobody calls it: nothing runs here

    def compile_all(self) -> Iterator[Compiled]:
        for name, (lower, mesh) in self._asked.items():
            if self._wanted(name):
                self._report(name)
                yield _compile(name, lower, mesh)


def _compile(name: str, lower: Callable[[], Any], mesh: jax.sharding.Mesh | None) -> Compiled:
    start = time.monotonic()
    try:
        with parallel.use(mesh):
            compiled = lower().compile()
    except jax.errors.JaxRuntimeError as error:
        needed = _bytes_needed(str(error))
        if needed is None:
            raise
        return Compiled(name, time.monotonic() - start, needed=needed, error=_first_sentence(str(error)))
    memory = compiled.memory_analysis()
    argument, temp = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    whole = argument + temp + memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak = getattr(memory, "peak_memory_in_bytes", 0) or whole
    text = compiled.as_text() or ""
    return Compiled(name, time.monotonic() - start, argument, temp, peak, max(peak, argument), collective_bytes(text))


def _bytes_needed(message: str) -> int | None:
    """Of the compiler's refusal: "... (16.17G) exceeds available HBM (15.75G)", "Used 23.90G of 15.75G hbm"."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    found = re.search(r"Used ([\d.]+)([KMGT]) of", message) or re.search(r"\(([\d.]+)([KMGT])\) exceeds", message)
    return int(float(found[1]) * units[found[2]]) if found else 0


def _first_sentence(message: str) -> str:
    return " ".join(message.split())[:300]


def collective_bytes(text: str) -> dict[str, int]:
    """Bytes that each kind of operation between devices gives on one device; a loop's body counts once."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        match = re.search(rf" = (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(", line)
        if match:
            found[match[2]] = found.get(match[2], 0) + _largest(match[1])
    return found


def _largest(shapes: str) -> int:
    """Bytes of the largest array of an instruction's result, such as "(bf16[16]{0}, bf16[64]{0})"."""
    sizes = [
        _BYTES.get(kind, 4) * math.prod(int(size) for size in dims.split(",") if size)
        for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    ]
    return max(sizes, default=0)


# ---------------------------------------------------------------- a run in shapes


@dataclasses.dataclass(frozen=True)
class Shapes:
    """What a run holds on a slice, as shapes on its mesh."""

    mesh: jax.sharding.Mesh
    student: qwen3_5.Config
    state: dict[str, Any]
    teacher: tuple[qwen3_5.Config, dict[str, Any]] | None

    def bytes_of(self, *names: str) -> int:
        """On one device, of the student's "params" and "optimizer", and of the "teacher"."""
        parts = {"teacher": self.teacher[1] if self.teacher else {}} | self.state
        return sum(parallel.device_bytes(parts[name]) for name in names)


def model_config(path: str, shipped: str) -> qwen3_5.Config:
    """Of a directory's config.json, of a published size by the end of its hub id, or of what the package ships."""
    directory = Path(path) if path else SHIPPED / shipped
    if (directory / "config.json").is_file():
        return configs.from_directory(directory)
    name = re.sub(r"-FP8$", "", path).rpartition("-")[2]
    try:
        return sizes.get(name)
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{path!r} is no directory with a config.json and no published size of Qwen3.5") from error


def make_mesh(config: Config, topology: Topology) -> jax.sharding.Mesh:
    """The slice's devices as config.mesh says."""
    given = {"chips_per_host_bounds": list(topology.chips_per_host)} if topology.chips_per_host else {}
    description = topologies.get_topology_desc(platform="tpu", topology_name=topology.libtpu, **given)
    return setup.make_mesh(config, description.devices)


def shapes(config: Config, mesh: jax.sharding.Mesh, with_teacher: bool) -> Shapes:
    """Parameters, optimiser and teacher where the rules put them."""
    student = model_config(config.model.path, "student")
    params = hf.abstract_params(student, config.model.dtype)
    transform, frozen = setup.transform_of(config), config.optimizer.freeze
    optimizer = jax.eval_shape(lambda params: step.init_optimizer(params, student, transform, frozen), params)
    state = {"params": params, "optimizer": optimizer}
    axes = step.state_axes(state, student, transform, frozen)  # runs a little, which no device of the slice can
    teacher = model_config(config.teacher.path, "teacher") if with_teacher else None
    with parallel.use(mesh):
        placed = parallel.placed_shapes(state, axes)
        if teacher is None:
            return Shapes(mesh, student, placed, None)
        theirs = parallel.placed_shapes(hf.abstract_params(teacher, config.model.dtype), vlm.logical_axes(teacher))
        return Shapes(mesh, student, placed, (teacher, theirs))


def ask(config: Config, run: Shapes, compiler: Recorder) -> None:
    """Names every program of the run to the compiler."""
    sizes_of = setup.shapes_of_prompts(config, run.student)
    engine = _engine(config, run.student, compiler, sizes_of, config.rollout.mesh, "rollout.mesh")
    learner = setup.learner_of(config, run.student, engine, compiler)
    sampling = Sampling(config.rollout.temperature, config.rollout.top_k, config.rollout.top_p)
    engine.prepare(run.state["params"], (sampling,))
    learner.prepare(run.state)
    if run.teacher is not None:
        model, params = run.teacher
        teacher = _engine(config, model, compiler, sizes_of, config.teacher.mesh, "teacher.mesh", "teacher's ")
        teacher.prepare(params, (Sampling(config.teacher.temperature, top_p=config.teacher.top_p),))


def _engine(config: Config, model: Any, compiler: Recorder, shapes: Any, mesh: Any, where: str, name: str = "") -> Any:
    decoding = setup.decoding_mesh(compiler, mesh, where)
    return setup.engine_of(config, model, banned_mask(model), compiler, shapes, decoding, name)


def gib(size: float) -> float:
    return round(size / GIB, 3)
