"""Makes an answer from compiled programs: one JSON object, which table.py writes as a table."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import itertools
from collections.abc import Sequence
from typing import Any

from zppo_jax import parallel, setup
from zppo_jax.aot import memory, programs
from zppo_jax.aot.compiling import Compiled, Recorder
from zppo_jax.aot.programs import Programs, Shapes, gib
from zppo_jax.aot.topologies import GIB, Topology
from zppo_jax.config import Config
from zppo_jax.errors import ConfigError
from zppo_jax.models.qwen3_5 import flops
from zppo_jax.run.console import RunConsole
from zppo_jax.update import rows

UTILISATION = 0.4


@dataclasses.dataclass(frozen=True)
class Question:
    """The question about a run on a slice: the programs whose names or kinds begin with one of `names` (all if it is
    empty), with the teacher or without, and at most `limit` seconds for each."""

    config: Config
    topology: Topology
    names: Sequence[str] = ()
    teacher: bool = True
    limit: float | None = None


def answer(asked: Question, search: bool, console: RunConsole) -> dict[str, Any]:
    """The answer: {"topology", "devices", "mesh", "programs": [...]}, the date and the versions, and with `search`
    {"largest_rows_per_microbatch", "tried"}."""
    config, topology = asked.config, asked.topology
    mesh, sampling_mesh = programs.make_meshes(config, topology)
    needed = asked.teacher and programs.samples_teacher(config)
    own = programs.make_teacher_mesh(config, topology) if needed else None
    run = programs.shapes(config, mesh, sampling_mesh, needed, own)
    result = {
        "topology": topology.name,
        "devices": topology.num_devices,
        "hosts": run.hosts.count,
        "mesh": dict(mesh.shape),
        "date": datetime.date.today().isoformat(),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "libtpu")},
        "state_gib": gib(run.bytes_of("params", "optimizer")),
        "teacher_gib": gib(run.bytes_of("teacher", "reference")),
    }
    if search:
        return result | {"programs": [], "search": _search(asked, run, console)}
    found, programs_of = _compile(asked, run, console)
    code = sum(one.code for one in found)
    entries = [_entry(asked, run, programs_of, one, code) for one in found]
    result |= {"code_gib": gib(code), "programs": entries}
    return result | ({"advice": _advice(config)} if any(map(_is_large_teacher, entries)) else {})


def _is_large_teacher(entry: dict[str, Any]) -> bool:
    """Whether this is a program of the teacher that does not fit."""
    return entry["fits"] is False and entry["program"].startswith(("teacher ", "compressor "))


def _advice(config: Config) -> str:
    return f"The teacher does not fit: {setup.ways_out(config)}."


def _compile(asked: Question, run: Shapes, console: RunConsole) -> tuple[list[Compiled], Programs]:
    """Compiles every wanted program, one after the other; returns them and the engines that they belong to."""

    def wanted(name: str) -> bool:
        return not asked.names or any(one.startswith(tuple(asked.names)) for one in (name, _label(name)))

    compiler = Recorder(run.mesh, wanted, asked.limit)
    found, done = programs.ask(asked.config, run, compiler), []
    if not any(map(wanted, compiler.asked)):
        raise ConfigError(f"--programs={','.join(asked.names)}: no program's name begins so, of {list(compiler.asked)}")

    def announce(name: str) -> None:
        console.message(f"compiling {name} ...")
        console.heartbeat.detail(f"{name}, {len(done)} are done")

    with console.heartbeat.during("compiling"):
        for one in compiler.compile_all(announce):
            end = f": {one.error}" if one.unfinished else ", and it does not fit" if one.error else ""
            console.message(f"compiled {one.name} in {one.seconds:.0f} s{end}")
            done.append(one)
    return done, found


def _entry(asked: Question, run: Shapes, found: Programs, one: Compiled, code: int) -> dict[str, Any]:
    """The answer's entry of one program. `code` are the bytes of all programs, which stay on the device throughout."""
    limit = asked.topology.generation.hbm_gib * GIB
    beside = memory.beside(asked.config, run, found, one.name) + code
    entry: dict[str, Any] = {
        "program": _label(one.name),
        "name": one.name,
        "argument_gib": gib(one.argument),
        "temp_gib": gib(one.temp),
        "peak_gib": gib(one.needed if one.error else one.peak),
        "beside_gib": gib(beside),
        "limit_gib": asked.topology.generation.hbm_gib,
        "fits": None if one.unfinished else not one.error and one.needed + beside <= limit,
        "missing_gib": None if one.unfinished else gib(max(one.needed + beside - limit, 0)),
        "compile_s": round(one.seconds, 1),
        "collective_bytes": one.collectives,
    }
    return entry | _work(asked, run, found, one) | ({"error": one.error} if one.error else {})


def _label(name: str) -> str:
    """The program's label, such as "teacher prefill": the engine, unless it is the student's, and the kind."""
    owner = "compressor " if "compressor's " in name else "teacher " if name.startswith("teacher's ") else ""
    return owner + memory.kind_of(name)


def _work(asked: Question, run: Shapes, found: Programs, one: Compiled) -> dict[str, float]:
    """The model's FLOPs of one call, and its time at UTILISATION of the peak of its devices; empty for programs that
    hardly compute. Decoding reads weights and slots for every token, which usually takes longer."""
    work = _tflop(asked.config, run, found, one.name)
    if work is None:
        return {}
    kind, trains = asked.topology.generation, memory.kind_of(one.name) in memory.TRAINING
    seconds = work / (kind.tflops * (run.mesh if trains else run.sampling_mesh).size)
    if memory.kind_of(one.name) == "decode":
        seconds = max(seconds, asked.config.rollout.chunk * one.argument / (1e9 * kind.gigabytes_per_second))
    return {"tflop": _rounded(work), "seconds_at_40_percent": _rounded(seconds / UTILISATION)}


def _rounded(number: float) -> float:
    return float(f"{number:.4g}")


def _tflop(config: Config, run: Shapes, found: Programs, name: str) -> float | None:
    kind, engine = memory.kind_of(name), found.engine_of(name)
    if kind in ("gradient", "logprobs"):
        update = config.update
        num_rows = setup.num_rows(config, run.mesh, run.hosts)
        if name == "log-probabilities":  # one for each part of the batch, as in `Learner`; the old ones cover all rows
            with parallel.use(run.mesh):
                num_rows = min(num_rows, parallel.num_shards("batch"))
        sizes = (num_rows, update.row_tokens, update.prompts_per_row)
        shape = rows.shapes(*sizes, config.prompt.buckets[-1], config.rollout.max_new_tokens, 0)
        training = flops.of_training(run.student, shape.num_tokens) * shape.num_rows * shape.num_tokens / 1e12
        return training if kind == "gradient" else training / 3
    if kind not in ("prefill", "decode"):
        return None
    bucket = memory.bucket_of(engine, name)
    if kind == "prefill":
        length = engine.shapes.buckets[bucket]
        return flops.of_prefill(engine.config, length) * length * engine.prompts_per_call / 1e12
    ring = engine.shapes.ring_of(bucket)
    return flops.of_step(engine.config, ring) * engine.num_slots * config.rollout.chunk / 1e12


def _search(asked: Question, run: Shapes, console: RunConsole) -> dict[str, Any]:
    """Doubles the rows of a micro-batch, from one for each part of the batch, until the gradient does not fit. The
    answer is None if time ran out at the first, and not `decided` if it ran out at a later one."""
    with parallel.use(run.mesh):
        smallest = parallel.num_shards("batch")
    best, tried = None, []
    for count in (smallest * 2**power for power in itertools.count()):
        update = dataclasses.replace(asked.config.update, rows_per_microbatch=count)
        larger = dataclasses.replace(
            asked, config=dataclasses.replace(asked.config, update=update), names=("gradient",)
        )
        (one,), found = _compile(larger, run, console)
        entry = _entry(larger, run, found, one, one.code)
        said = ("peak_gib", "beside_gib", "fits", "missing_gib", "compile_s", "error")
        tried.append({"rows_per_microbatch": count} | {name: entry[name] for name in said if name in entry})
        if not entry["fits"]:
            break
        best = count
    decided = tried[-1]["fits"] is False
    largest = 0 if best is None and decided else best
    return {"largest_rows_per_microbatch": largest, "decided": decided, "tried": tried}
