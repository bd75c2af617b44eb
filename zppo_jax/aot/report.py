"""From compiled programs to an answer: a JSON object, and the same as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import rich.box
import rich.console
import rich.table

from zppo_jax import parallel
from zppo_jax.aot import programs
from zppo_jax.aot.programs import Compiled, Recorder, Shapes, gib
from zppo_jax.aot.topologies import GIB, Topology
from zppo_jax.config import Config
from zppo_jax.console import RunConsole
from zppo_jax.models.qwen3_5 import flops
from zppo_jax.update import rows
from zppo_jax.zppo import get_method

UTILISATION = 0.4

KINDS = ("zero gradient", "gradient", "update", "log-probabilities", "prefill", "decode", "weights", "vision")
"""What a program is, by a word in its name."""


def answer(
    config: Config, topology: Topology, names: Sequence[str], teacher: bool, search: bool, console: RunConsole
) -> dict[str, Any]:
    """{"topology", "devices", "mesh", "programs": [...]}, and with `search` "largest_rows_per_microbatch"."""
    mesh = programs.make_mesh(config, topology)
    run = programs.shapes(config, mesh, teacher and bool(get_method(config.method).needs_teacher))
    found = [_entry(config, topology, run, one) for one in compiled(config, run, names, console)]
    result = {
        "topology": topology.name,
        "devices": topology.num_devices,
        "mesh": dict(mesh.shape),
        "state_gib": gib(run.bytes_of("params", "optimizer")),
        "teacher_gib": gib(run.bytes_of("teacher")),
        "programs": found,
    }
    return result | ({"search": _search(config, topology, run, console)} if search else {})


def compiled(config: Config, run: Shapes, names: Sequence[str], console: RunConsole) -> Iterator[Compiled]:
    """Every program, or those whose names hold one of the texts."""

    def wanted(name: str) -> bool:
        # What fills slots only copies, and makes random keys when it is lowered, which no absent device can.
        fills = name.removeprefix("teacher's ").startswith("fill of ")
        return not fills and (not names or any(text in name for text in names))

    compiler = Recorder(run.mesh, wanted, lambda name: console.message(f"compiling {name} ..."))
    programs.ask(config, run, compiler)
    for one in compiler.compile_all():
        console.message(f"compiled {one.name} in {one.seconds:.0f} s{': it does not fit' if one.error else ''}")
        yield one


def _entry(config: Config, topology: Topology, run: Shapes, one: Compiled) -> dict[str, Any]:
    limit = topology.generation.hbm_gib * GIB
    beside = _beside(run, one.name)
    entry: dict[str, Any] = {
        "program": _kind(one.name),
        "name": one.name,
        "argument_gib": gib(one.argument),
        "temp_gib": gib(one.temp),
        "peak_gib": gib(one.needed if one.error else one.peak),
        "beside_gib": gib(beside),
        "limit_gib": topology.generation.hbm_gib,
        "fits": not one.error and one.needed + beside <= limit,
        "missing_gib": gib(max(one.needed + beside - limit, 0)),
        "compile_s": round(one.seconds, 1),
        "collective_bytes": one.collectives,
    }
    work = _tflops(config, run, one.name)
    if work is not None:
        seconds = work / (UTILISATION * topology.generation.tflops * topology.num_devices)
        entry |= {"tflop": round(work, 2), "seconds_at_40_percent": round(seconds, 3)}
    return entry | ({"error": one.error} if one.error else {})


def _kind(name: str) -> str:
    kind = next((kind for kind in KINDS if kind in name), name)
    kind = {"log-probabilities": "logprobs", "zero gradient": "zeros"}.get(kind, kind)
    return f"teacher {kind}" if name.startswith("teacher's ") else kind


def _beside(run: Shapes, name: str) -> int:
    """What a device holds while the program runs and that is none of its arguments. Caches and weights of decoding are
    arguments of what uses them, and gone when the update comes."""
    if name.startswith("teacher's "):
        held = ("params", "optimizer") + (() if _takes_parameters(name) else ("teacher",))
    elif _kind(name) == "update":
        held = ("teacher",)
    else:
        held = ("optimizer", "teacher") + (() if _takes_parameters(name) else ("params",))
    return run.bytes_of(*held)


def _takes_parameters(name: str) -> bool:
    return _kind(name).removeprefix("teacher ") in ("gradient", "logprobs", "prefill", "weights", "vision")


def _tflops(config: Config, run: Shapes, name: str) -> float | None:
    """Of the model, for one call on all devices; None for programs that hardly compute."""
    model = run.teacher[0] if run.teacher and name.startswith("teacher's ") else run.student
    kind = _kind(name).removeprefix("teacher ")
    if kind in ("gradient", "logprobs"):
        update = config.update
        sizes = (update.rows_per_microbatch, update.row_tokens, update.prompts_per_row)
        shape = rows.shapes(*sizes, config.prompt.buckets[-1], config.rollout.max_new_tokens, 0)
        training = flops.of_training(model, shape.num_tokens) * shape.num_rows * shape.num_tokens / 1e12
        return training if kind == "gradient" else training / 3
    return None


def _search(config: Config, topology: Topology, run: Shapes, console: RunConsole) -> dict[str, Any]:
    """Doubles the rows of a micro-batch from one for each part of the batch until the gradient does not fit."""
    with parallel.use(run.mesh):
        count = parallel.num_shards("batch")
    best, tried = 0, []
    while True:
        update = dataclasses.replace(config.update, rows_per_microbatch=count)
        larger = dataclasses.replace(config, update=update)
        (entry,) = [
            _entry(larger, topology, run, one)
            for one in compiled(larger, run, ("gradient",), console)
            if one.name == "gradient"
        ]
        tried.append({"rows_per_microbatch": count, "peak_gib": entry["peak_gib"], "fits": entry["fits"]})
        if not entry["fits"]:
            return {"largest_rows_per_microbatch": best, "tried": tried}
        best, count = count, 2 * count


def show(result: dict[str, Any]) -> None:
    """The table for people."""
    title = f"{result['topology']}: {result['devices']} devices, mesh " + " x ".join(
        f"{axis} {size}" for axis, size in result["mesh"].items()
    )
    table = rich.table.Table(title=title, title_justify="left", box=rich.box.SIMPLE)
    table.add_column("program")
    for column in (
        "arguments",
        "temporary",
        "peak",
        "beside",
        "limit",
        "fits",
        "compiled",
        "collectives",
        "TFLOP",
        "s",
    ):
        table.add_column(column, justify="right")
    for one in result["programs"]:
        table.add_row(*_cells(one))
    console = rich.console.Console()
    console.print(table)
    held = f"state {result['state_gib']:.2f} GiB a device, teacher {result['teacher_gib']:.2f}"
    console.print(f"{held}; GiB a device; compiled in seconds; seconds at 40 % of peak")
    if "search" in result:
        console.print(f"largest update.rows_per_microbatch: {result['search']['largest_rows_per_microbatch']}")


def _cells(one: dict[str, Any]) -> list[str]:
    sizes = [f"{one[name]:.2f}" for name in ("argument_gib", "temp_gib", "peak_gib", "beside_gib", "limit_gib")]
    fits = "yes" if one["fits"] else f"{one['missing_gib']:.2f} short"
    moved = ", ".join(f"{kind} {gib(size):.2f}" for kind, size in one["collective_bytes"].items()) or "-"
    work = [f"{one['tflop']:.1f}", f"{one['seconds_at_40_percent']:.2f}"] if "tflop" in one else ["-", "-"]
    return [one["name"], *sizes, fits, f"{one['compile_s']:.0f}", moved, *work]
