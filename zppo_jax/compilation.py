"""Programs compiled ahead of their first call, in background threads, each for exactly one set of shapes.

A compiled program refuses arguments of other shapes, so "compile once" holds by construction; and while the update is
still compiling, the first rollouts already run.
"""

from __future__ import annotations

import contextlib
import copy
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
"""The kind of a program: it processes whole sequences, or one token of each row in a loop."""

_OPTIONS: dict[str, dict[Kind, dict[str, Any]]] = {
    "cpu": {
        # XLA orders instructions for more threads than small models can use, and holds a third more temporaries for
        # that; every page of these costs time.
        "sequence": {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"},
        # Temporaries of a step are small. Its products go to the kernel library; its sums, which are small too, do not:
        # this saves a tenth of the time.
        "step": {
            "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
            "xla_cpu_prefer_vector_width": 512,
            "xla_cpu_enable_fast_min_max": True,
        },
    }
}
"""Compile options by platform."""

Announce = Callable[[str], AbstractContextManager[Any]]


def shapes_of(tree: Any) -> Any:
    """The tree of shapes, dtypes and shardings that a program is compiled for; nothing is allocated."""

    def one(x: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(x, "sharding", None)
        on_mesh = sharding if isinstance(sharding, jax.sharding.NamedSharding) else None
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on_mesh)

    return jax.tree.map(one, tree)


class Program:
    """A program that is being compiled or ready; a call waits until it is ready, and announces that."""

    def __init__(self, name: str, future: Future[Any], announce: Announce) -> None:
        self.name = name
        self._future = future
        self._announce = announce

    def __call__(self, *args: Any) -> Any:
        return self.compiled(*args)

    @property
    def is_ready(self) -> bool:
        """Whether a call need not wait."""
        return self._future.done()

    @property
    def compiled(self) -> jax.stages.Compiled:
        """The result of XLA; waits for it."""
        if not self.is_ready:
            with self._announce(self.name):
                self._future.result()
        return self._future.result()


class Compiler:
    """Compiles programs by name, once each.

    Args:
      announce: a context manager for the time that a call waits for a program (the console shows it).
      num_threads: the number of compilations at the same time.
      mesh: the mesh of the programs; None for the default device.
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

    def on(self, mesh: jax.sharding.Mesh | None) -> Compiler:
        """A compiler whose programs are on another mesh; both share their threads and names."""
        other = copy.copy(self)
        other.mesh = mesh
        return other

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all programs so far, in order."""
        return tuple(self._programs)

    def standing(self) -> str:
        """The progress, as "3 of 11 programs ready, compiling gradient (62 s), update (40 s)"; empty at the end."""
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
        """The program of that name; at the first call `lower()` makes its `jax.stages.Lowered`.

        `mesh` is another mesh of the same devices, if the program does not use the compiler's.
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
        """Cancels compilations that have not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def use_cache() -> None:
    """Keep compiled programs on disk, so that the second run starts at once.

    JAX_COMPILATION_CACHE_DIR, if set, gives the directory (empty: no cache); XDG_CACHE_HOME is respected.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(root / "zppo_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def keep_memory() -> None:
    """Keeps memory that a program has used in the process, for the next call; on a CPU with glibc.

    XLA allocates its temporaries in each call, and glibc returns blocks of that size to the system after it, so every
    call faults in all its pages: a fifth of a training step. The cost is that the process does not shrink. Call it
    before the first array is made. If GLIBC_TUNABLES is set, the user has decided, and nothing changes.
    """
    libc = ctypes.CDLL(None)
    if "GLIBC_TUNABLES" in os.environ or not hasattr(libc, "mallopt"):
        return
    _set_options(libc, _KEEP)  # before the backend starts, because each of its threads opens a heap
    if jax.default_backend() != "cpu":
        _set_options(libc, _DEFAULT)


_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD = -8, -4, -1
_KEEP = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: -1}
_DEFAULT = {_ARENA_MAX: 0, _MMAP_MAX: 65536, _TRIM_THRESHOLD: 128 * 1024}
"""The options of glibc's malloc.h. Kept means: one heap for all threads, no block by mmap, nothing returned."""


def _set_options(libc: ctypes.CDLL, options: dict[int, int]) -> None:
    for option, value in options.items():
        libc.mallopt(option, value)


@contextlib.contextmanager
def compiler(announce: Announce | None = None, mesh: jax.sharding.Mesh | None = None) -> Iterator[Compiler]:
    """Makes a `Compiler` that is closed at the end of the block."""
    made = Compiler(announce, mesh=mesh)
    try:
        yield made
    finally:
        made.close()
