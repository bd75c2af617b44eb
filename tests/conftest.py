"""Settings that all tests share; they must stand before the first import of jax, transformers or matplotlib."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import json
import os
import shutil
import sys

import filelock
import pytest
from hypothesis import settings

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the oracles compare on the CPU; set it to test another platform
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may need a network
os.environ["TOKENIZERS_PARALLELISM"] = "false"
OLD_JAX = tuple(map(int, importlib.metadata.version("jax").split(".")[:2])) < (0, 11)
# One module of LLVM a program: each of many costs its own passes, and the workers keep all cores busy anyway.
FLAGS = {"xla_cpu_parallel_codegen_split_count": "1"}
if OLD_JAX:
    # To write fused loops by way of MLIR doubles the time to compile; later versions have no other way.
    FLAGS["xla_cpu_use_fusion_emitters"] = "false"
for flag, value in FLAGS.items():
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{flag}={value}".strip()

# Tracing makes so many objects that to look for cycles at every 700th is a twentieth of the time.
gc.set_threshold(20_000, 20, 20)

# The same examples in every run: a failure here is a failure everywhere. A slow machine is no fault.
settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile("reproducible")


def pytest_configure(config):
    """Lets xdist hand out files in the order below; by itself it begins with those of the most tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Long files come first, so that no worker is left with one at the end.

    Files that look at the one undisturbed run are long: whoever needs it first trains it. One of them begins, and the
    others come when it is there.
    """
    of_the_run = sorted({item.path for item in items if "straight" in item.fixturenames})
    for item in items:
        if item.path in of_the_run:
            item.add_marker(pytest.mark.slow)
    long = {item.path for item in items if item.get_closest_marker("slow")}

    def place(item):
        return item.path not in of_the_run[:1], item.path not in long, item.path in of_the_run

    items.sort(key=place)


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A directory for what all worker processes of a session use."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@contextlib.contextmanager
def made_once(directory, last):
    """Whether this process is to make `directory`, the other workers waiting meanwhile; `last` is written last."""
    with filelock.FileLock(f"{directory}.lock"):
        missing = not (directory / last).exists()
        if missing:
            shutil.rmtree(directory, ignore_errors=True)  # of a worker that failed
            directory.mkdir()
        yield missing


@pytest.fixture(scope="session")
def compilation_folder(shared):
    """The compilation cache of the session."""
    return shared / "xla"


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(request, compilation_folder):
    """Little optimisation and one cache for all processes, because compiling is what costs time. Not for a module with
    the mark `computes`: there programs run long, or what XLA makes of them is what is tested."""
    if "jax" not in sys.modules or request.node.get_closest_marker("computes"):
        yield
        return
    from tests import runs

    with runs.quick_compilation(compilation_folder):
        yield


@pytest.fixture(scope="session")
def start(shared, compilation_folder):
    """The directory of the model from which small runs start: student and teacher."""
    from tests import runs

    directory = shared / "start"
    with made_once(directory, "losses.json") as missing:
        if missing:
            with runs.quick_compilation(compilation_folder):
                losses = runs.train_start(directory)
            (directory / "losses.json").write_text(json.dumps(losses))
    return directory


@pytest.fixture(scope="session")
def straight(start, shared, compilation_folder):
    """The directory of a run of six steps that nothing disturbed, with the programs that each step compiled."""
    from tests import runs

    workdir, counts = shared / "straight", {}

    def count(step: int) -> None:
        counts[step] = list(names)

    with made_once(workdir, "compiled.json") as missing:
        if missing:
            with runs.quick_compilation(compilation_folder), runs.compilations() as names, runs.after_row(count):
                runs.run(start, workdir, drawn=True)
            (workdir / "compiled.json").write_text(json.dumps(counts))
    return workdir
