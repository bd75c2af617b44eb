"""Programs: one compilation each, one set of shapes each, and a message while a call waits."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zppo_jax import compilation
from zppo_jax.compilation import Compiler


@jax.jit
def double(x):
    return 2 * x


def lower_double():
    return double.lower(jax.ShapeDtypeStruct((3,), jnp.float32))


class Announcer:
    """Keeps the announcements, in order; lets the compilation go on once a call waits."""

    def __init__(self):
        self.said: list[str] = []
        self.waiting = threading.Event()

    @contextlib.contextmanager
    def __call__(self, name):
        self.said.append(f"begin {name}")
        self.waiting.set()
        yield
        self.said.append(f"end {name}")


def test_a_program_takes_its_own_shapes_only():
    """A compiled program must not silently compile again: other shapes and types are errors."""
    with compilation.compiler() as compiler:
        program = compiler.program("double", lower_double)
        np.testing.assert_array_equal(program(np.arange(3, dtype=np.float32)), [0, 2, 4])
        for wrong in (np.zeros(4, np.float32), np.zeros((3, 1), np.float32), np.zeros(3, np.int32)):
            with pytest.raises(TypeError):
                program(wrong)


def test_each_name_is_compiled_once():
    lowered = []

    def lower():
        lowered.append(1)
        return lower_double()

    with compilation.compiler() as compiler:
        first = compiler.program("double", lower)
        assert compiler.program("double", lower) is first
        first(np.zeros(3, np.float32))
        compiler.program("another", lower)(np.zeros(3, np.float32))
        assert compiler.names == ("double", "another")
    assert len(lowered) == 2


def test_waiting_is_announced_once_and_only_while_it_lasts():
    announcer = Announcer()

    def lower():
        assert announcer.waiting.wait(60), "nobody waits"
        return lower_double()

    with compilation.compiler(announcer) as compiler:
        program = compiler.program("double", lower)
        assert announcer.said == [], "asking for a program does not wait"
        for _ in range(3):
            program(np.zeros(3, np.float32))
    assert announcer.said == ["begin double", "end double"]


def test_nothing_is_announced_when_the_program_is_ready():
    announcer = Announcer()
    with compilation.compiler(announcer) as compiler:
        program = compiler.program("double", lower_double)
        program._future.result()
        program(np.zeros(3, np.float32))
    assert announcer.said == []


def test_a_failure_to_compile_reaches_the_caller():
    def lower():
        raise ValueError("no such shape")

    with compilation.compiler() as compiler:
        program = compiler.program("broken", lower)
        for _ in range(2):
            with pytest.raises(ValueError, match="no such shape"):
                program()


def test_leaving_gives_up_what_has_not_begun():
    """Ctrl-C must not wait for programs that are no longer needed."""
    begun, go_on = threading.Event(), threading.Event()

    def slow():
        begun.set()
        assert go_on.wait(60)
        return lower_double()

    compiler = Compiler(num_threads=1)
    running = compiler.program("running", slow)
    assert begun.wait(60)
    waiting = compiler.program("waiting", lower_double)
    compiler.close()
    assert waiting._future.cancelled()
    go_on.set()
    np.testing.assert_array_equal(running(np.ones(3, np.float32)), [2, 2, 2])


def cache_directory() -> str | None:
    return getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009, pyright does not know it


@pytest.fixture
def jax_cache_settings():
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_disk_cache_lies_where_the_machine_keeps_caches(monkeypatch, tmp_path, jax_cache_settings):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compilation.use_cache()
    assert cache_directory() == str(tmp_path / "zppo_jax" / "xla")


def test_jaxs_own_variable_decides_the_cache(monkeypatch, tmp_path, jax_cache_settings):
    before = cache_directory()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compilation.use_cache()
    assert cache_directory() == before


FAULTS = """
import resource
import jax, jax.numpy as jnp
from zppo_jax import compilation
{setting}
grow = jax.jit(lambda x: (jnp.tanh(x @ x.T) @ x).sum())
x = jnp.ones((4096, 16))
faults = []
for _ in range(24):  # the heap needs some calls to reach the size at which it stays
    grow(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print((faults[-1] - faults[-5]) // 4)
"""


def faults_of_a_call(setting: str, **variables: str) -> int:
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"} | variables
    command = [sys.executable, "-c", FAULTS.format(setting=setting)]
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_of_a_program_is_kept_for_its_next_call():
    plain = faults_of_a_call("")
    assert plain > 8192, "without the setting a call faults an array of 64 MB in"
    assert faults_of_a_call("compilation.keep_memory()") < plain / 2, "threads may still move a block now and then"
    assert faults_of_a_call("compilation.keep_memory()", GLIBC_TUNABLES="glibc.malloc.mmap_max=100000") > 8192
