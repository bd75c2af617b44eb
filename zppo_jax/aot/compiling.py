"""Compiles programs one after the other for devices that are not present, and keeps the compiler's numbers of each."""

from __future__ import annotations

import dataclasses
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import jax

from zppo_jax import parallel
from zppo_jax.compilation import Compiler, Kind, Program

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {
    "pred": 1,
    "f8e4m3fn": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "f32": 4,
    "s32": 4,
    "u32": 4,
}


@dataclasses.dataclass
class Compiled:
    """The compiler's numbers of one program. Bytes are per device.

    `needed` is the memory in addition to the program itself, `code`. `error` says why there is no program: it does not
    fit, or `unfinished`: time ran out.
    """

    name: str
    seconds: float
    argument: int = 0
    temp: int = 0
    peak: int = 0
    needed: int = 0
    code: int = 0
    collectives: dict[str, int] = dataclasses.field(default_factory=dict)
    error: str = ""
    unfinished: bool = False


class Recorder(Compiler):
    """Compiles programs one after the other for the devices of its mesh, and keeps the compiler's numbers, not the
    program.

    `wanted` says by name which programs to compile; the others are not even traced. A program that takes more than
    `limit` seconds is given up, and the following ones are not begun: a compilation cannot be stopped.
    """

    def __init__(self, mesh: jax.sharding.Mesh, wanted: Callable[[str], bool], limit: float | None = None) -> None:
        super().__init__(mesh=mesh, num_threads=1)
        self._wanted, self._limit = wanted, limit
        self.asked: dict[str, tuple[Callable[[], Any], jax.sharding.Mesh | None]] = {}

    def on(self, mesh: jax.sharding.Mesh) -> Recorder:
        """A recorder for another mesh; its programs are recorded here."""
        other = Recorder(mesh, self._wanted, self._limit)
        other.asked = self.asked
        return other

    def program(
        self, name: str, lower: Callable[[], Any], kind: Kind = "sequence", mesh: jax.sharding.Mesh | None = None
    ) -> Program:
        del kind  # compile options are for other platforms
        self.asked.setdefault(name, (lower, mesh or self.mesh))
        return None  # type: ignore[return-value]  # never called: nothing runs here

    def compile_all(self, announce: Callable[[str], None]) -> Iterator[Compiled]:
        given_up = False
        for name, (lower, mesh) in self.asked.items():
            if given_up and self._wanted(name):
                yield Compiled(name, 0.0, error="not begun: time ran out before", unfinished=True)
            elif self._wanted(name):
                announce(name)
                found = _within(self._limit, lambda name=name, lower=lower, mesh=mesh: compiled(name, lower, mesh))
                given_up = found is None
                late = f"not compiled in {(self._limit or 0) / 60:.0f} minutes"
                yield found or Compiled(name, self._limit or 0.0, error=late, unfinished=True)


def _within(limit: float | None, work: Callable[[], Compiled]) -> Compiled | None:
    """The result of `work`; None if it takes longer than `limit` seconds (it then continues until the process ends)."""
    if limit is None:
        return work()
    future: Future[Compiled] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return future.result(limit)
    except TimeoutError:
        if future.done():  # `work` raised it
            raise
        return None


def compiled(name: str, lower: Callable[[], Any], mesh: jax.sharding.Mesh | None) -> Compiled:
    """Compiles one program on its mesh. That it does not fit is a result; any other refusal raises."""
    start = time.monotonic()
    try:
        with parallel.use(mesh):
            program = lower().compile()
    except jax.errors.JaxRuntimeError as error:
        needed = bytes_needed(str(error))
        if needed is None:
            raise
        return Compiled(name, time.monotonic() - start, needed=needed, error=_first_sentence(str(error)))
    memory = program.memory_analysis()
    argument, temp = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    whole = argument + temp + memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak = getattr(memory, "peak_memory_in_bytes", 0) or whole
    text = program.as_text() or ""
    seconds, code = time.monotonic() - start, memory.generated_code_size_in_bytes
    return Compiled(name, seconds, argument, temp, peak, max(peak, argument), code, collective_bytes(text))


def bytes_needed(message: str) -> int | None:
    """Reads the compiler's refusal: "... (16.17G) exceeds available HBM (15.75G)", "Used 23.90G of 15.75G hbm"."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    found = re.search(r"Used ([\d.]+)([KMGT]) of", message) or re.search(r"\(([\d.]+)([KMGT])\) exceeds", message)
    return int(float(found[1]) * units[found[2]]) if found else 0


def _first_sentence(message: str) -> str:
    return " ".join(message.split())[:300]


_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.-]+) .*\{\s*$")
_INSTRUCTION = re.compile(rf" = (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(")
_SCATTER = "all-reduce-scatter"
"""The name of the computations in which a TPU's all-reduce leaves each device only its part."""


def collective_bytes(text: str) -> dict[str, int]:
    """Bytes of the results of each kind of collective on one device; a loop's body counts once.

    An asynchronous operation is in the text several times (start, update, done), with the same channel number.
    """
    found: dict[str, int] = {}
    channels, computation = set(), ""
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        computation = header[1] if header else computation
        if computation.startswith(_SCATTER):
            result = re.match(r"\s+ROOT \S+ = (.*?) [\w-]+\(", line)
            if result:
                found["reduce-scatter"] = found.get("reduce-scatter", 0) + sum(_sizes(result[1]))
            continue
        match, channel = _INSTRUCTION.search(line), re.search(r"channel_id=(\d+)", line)
        if match is None or (channel and channel[1] in channels):
            continue
        channels.update(channel.groups() if channel else ())
        # The start of a gather returns its input as well as its output.
        size = max if match[3] and match[2] != "all-reduce" else sum
        found[match[2]] = found.get(match[2], 0) + size(_sizes(match[1]))
    return found


def _sizes(shapes: str) -> list[int]:
    """Bytes of each array of an instruction's result, such as "(bf16[16]{0}, bf16[64]{0})"."""
    return [
        _BYTES.get(kind, 4) * math.prod(int(size) for size in dims.split(",") if size)
        for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    ] or [0]
