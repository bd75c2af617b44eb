"""Settings that all tests share; they must stand before the first import of jax, transformers or matplotlib."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import settings

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the oracles compare on the CPU; set it to test another platform
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may need a network
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# The same examples in every run: a failure here is a failure everywhere. A slow machine is no fault.
settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile("reproducible")


def pytest_collection_modifyitems(items):
    """Files that look at the one undisturbed run are long: whoever needs it trains it first."""
    of_the_run = {item.path for item in items if "straight" in item.fixturenames}
    for item in items:
        if item.path in of_the_run:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def compilation_folder(tmp_path_factory):
    """The compilation cache of all small runs (tests/runs.py)."""
    return tmp_path_factory.mktemp("xla")


@pytest.fixture(scope="module")
def quick_compilation(compilation_folder):
    """For a module of small runs: little optimisation, one cache."""
    from tests import runs

    with runs.quick_compilation(compilation_folder):
        yield


@pytest.fixture(scope="session")
def start(tmp_path_factory, compilation_folder):
    """The directory of the model from which small runs start: student and teacher."""
    from tests import runs

    directory = tmp_path_factory.mktemp("start")
    with runs.quick_compilation(compilation_folder):
        losses = runs.train_start(directory)
    (directory / "losses.json").write_text(json.dumps(losses))
    return directory


@pytest.fixture(scope="session")
def straight(start, tmp_path_factory, compilation_folder):
    """The directory of a run of six steps that nothing disturbed, with the programs that each step compiled."""
    from tests import runs

    workdir, counts = tmp_path_factory.mktemp("straight"), {}

    def count(step: int) -> None:
        counts[step] = list(names)

    with runs.quick_compilation(compilation_folder), runs.compilations() as names, runs.after_row(count):
        runs.run(start, workdir)
    (workdir / "compiled.json").write_text(json.dumps(counts))
    return workdir
