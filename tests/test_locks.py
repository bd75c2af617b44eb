"""The lock files hold every dependency of pyproject.toml, in its range, and agree with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {"requirements.lock": (), "requirements-test.lock": ("test",), "requirements-dev.lock": ("test", "dev")}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(file: str) -> dict[str, str]:
    """The version of each package."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if not line.startswith("#")]
    return {normalised(name): version for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("file", EXTRAS)
def test_a_lock_holds_every_dependency_in_its_range(file):
    versions, extras = locked(file), PROJECT["optional-dependencies"]
    for line in [*PROJECT["dependencies"], *(line for extra in EXTRAS[file] for line in extras[extra])]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(versions[normalised(requirement.name)]), line


def test_each_lock_adds_to_the_one_before():
    runtime, test, dev = (locked(file) for file in EXTRAS)
    assert runtime.items() <= test.items() <= dev.items()
