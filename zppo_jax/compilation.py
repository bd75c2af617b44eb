"""Programs compiled ahead of their first call, in background threads, each for exactly one set of shapes.

A compiled program refuses arguments of other shapes, so "compile once" holds by construction; and while the update is
still compiling, the first rollouts already run.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import jax

from zppo_jax import parallel

Kind = Literal["sequence", "step"]
"""What a program works on: whole sequences, or one token of each row in a loop."""

_OPTIONS: dict[str, dict[Kind, dict[str, Any]]] = {
    "cpu": {
        # XLA orders instructions for threads that small models do not feed, and holds a third more temporaries for it;
        # every page of these costs time.
        "sequence": {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"},
        # Temporaries of a step are small. Its products go to the library of kernels, its sums, small too, do not: a
        # tenth of the time.
        "step": {
            "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
            "xla_cpu_prefer_vector_width": 512,
            "xla_cpu_enable_fast_min_max": True,
        },
    }
}
"""By platform."""

Announce = Callable[[str], AbstractContextManager[Any]]


def shapes_of(tree: Any) -> Any:
    """The same tree of shapes, dtypes and places on a mesh, nothing allocated: what a program is compiled for."""

    def one(x: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(x, "sharding", None)
        on_mesh = sharding if isinstance(sharding, jax.sharding.NamedSharding) else None
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on_mesh)

    return jax.tree.map(one, tree)


class Program:
    """A program that is being compiled or ready; calling it waits, and says so, if it must."""

    def __init__(self, name: str, future: Future[Any], announce: Announce) -> None:
        self.name = name
        self._future = future
        self._announce = announce

    def __call__(self, *args: Any) -> Any:
        return self.compiled(*args)

    @property
    def is_ready(self) -> bool:
        """Whether nobody has to wait for it any more."""
        return self._future.done()

    @property
    def compiled(self) -> jax.stages.Compiled:
        """What XLA made; waits for it."""
        if not self.is_ready:
            with self._announce(self.name):
                self._future.result()
        return self._future.result()


class Compiler:
    """Compiles programs by name, once each.

    Args:
      announce: a context manager for the time that somebody waits for a program (the console shows it).
      num_threads: compilations at the same time.
      mesh: what the programs run on; None for the default device.
    """

    def __init__(
        self, announce: Announce | None = None, num_threads: int | None = None, mesh: jax.sharding.Mesh | None = None
    ) -> None:
        self.mesh = mesh
        self._announce = announce or (lambda name: contextlib.nullcontext())
        self._pool = ThreadPoolExecutor(num_threads or min(os.cpu_count() or 1, 4), thread_name_prefix="compile")
        self._programs: dict[str, Program] = {}
        self._begun: dict[str, float] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that was compiled so far, in order."""
        return tuple(self._programs)

    def standing(self) -> str:
        """How far it is, as "3 of 11 programs ready, compiling gradient (62 s), update (40 s)"; empty once all are."""
        with self._lock:
            ready = [name for name, program in self._programs.items() if program.is_ready]
            begun = {name: start for name, start in self._begun.items() if name not in ready}
            total = len(self._programs)
        if len(ready) == total:
            return ""
        now = time.monotonic()
        running = ", ".join(f"{name} ({now - start:.0f} s)" for name, start in begun.items())
        return f"{len(ready)} of {total} programs ready" + (f", compiling {running}" if running else "")

    def program(
        self, name: str, lower: Callable[[], Any], kind: Kind = "sequence", mesh: jax.sharding.Mesh | None = None
    ) -> Program:
        """The program of that name; `lower()` makes the `jax.stages.Lowered` the first time it is asked for.

        `mesh`, of the same devices, where it is another than the compiler's own.
        """
        with self._lock:
            if name not in self._programs:
                future = self._pool.submit(self._compile, name, lower, kind, mesh or self.mesh)
                self._programs[name] = Program(name, future, self._announce)
            return self._programs[name]

    def _compile(self, name: str, lower: Callable[[], Any], kind: Kind, mesh: jax.sharding.Mesh | None) -> Any:
        with self._lock:
            self._begun[name] = time.monotonic()
        with parallel.use(mesh):  # the mesh in use belongs to a thread
            return lower().compile(_OPTIONS.get(jax.default_backend(), {}).get(kind))

    def close(self) -> None:
        """Gives up what has not begun to compile."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def use_cache() -> None:
    """Keep compiled programs on disk, so that the second run starts at once.

    JAX_COMPILATION_CACHE_DIR, where set, decides the place (empty: no cache); XDG_CACHE_HOME is respected.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(root / "zppo_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def keep_memory() -> None:
    """On a CPU under glibc: memory that a program has used stays with the process, for the next call to use.

    XLA asks for the temporaries again in each call, and glibc gives blocks of that size back to the system after it, so
    every call faults all its pages in: a fifth of a training step. The price is a process that does not shrink. Call it
    before the first array is made. Where GLIBC_TUNABLES is set, the user has decided.
    """
    libc = ctypes.CDLL(None)
    if "GLIBC_TUNABLES" in os.environ or not hasattr(libc, "mallopt"):
        return
    _set_options(libc, _KEEP)  # before the backend starts, because its threads open heaps of their own
    if jax.default_backend() != "cpu":
        _set_options(libc, _DEFAULT)


_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD = -8, -4, -1
_KEEP = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: -1}
_DEFAULT = {_ARENA_MAX: 0, _MMAP_MAX: 65536, _TRIM_THRESHOLD: 128 * 1024}
"""Options of glibc's malloc.h. Kept means: one heap for all threads, no block by mmap, nothing given back."""


def _set_options(libc: ctypes.CDLL, options: dict[int, int]) -> None:
    for option, value in options.items():
        libc.mallopt(option, value)


@contextlib.contextmanager
def compiler(announce: Announce | None = None, mesh: jax.sharding.Mesh | None = None) -> Iterator[Compiler]:
    """A `Compiler` that is closed at the end."""
    made = Compiler(announce, mesh=mesh)
    try:
        yield made
    finally:
        made.close()
