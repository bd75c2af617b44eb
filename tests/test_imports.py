"""Imports go one way, and the host's side of a step imports no jax. Checked in the source, without importing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "zppo_jax"

LAYERS = (
    {"errors", "types", "keys"},
    {"files", "children"},
    {"config"},
    {"command"},
    {"parallel", "processor"},
    {"compilation", "ops"},
    {"models"},
    {"rewards"},
    {"zppo"},
    {"remote"},
    {"judge", "data", "rollout"},
    {"update", "actors"},
    {"run", "evaluate"},
    {"teacher"},
    {"warmstart", "report"},
    {"setup"},
    {"train"},
    {"main", "export", "generate"},
    {"serve", "aot"},
)
"""A part of the package imports only from the sets before its own."""

HOST_ONLY = {
    *("errors", "types", "keys", "files", "children", "config", "command", "processor"),
    *("data", "rewards", "remote", "judge", "zppo", "report", "main", "run"),
}
"""Parts that run in worker processes, or before a mistake is reported: they import no jax, and no part that does.

Grain imports jax itself, so `data` always has it in memory; `main` imports `train` after all checks.
"""

WITH_JAX = {f"zppo_jax.run.{name}" for name in ("checkpoint", "records", "saves", "step")}
"""Modules of host-only parts that may import jax; no other module of such a part may import them."""

COMMANDS = {"zppo_jax.teacher.precompute"}
"""Modules that are commands, wherever they are: they may import what `main` may."""

DEVICE_LIBRARIES = {"jax", "jaxlib", "flax", "optax", "orbax"}
FOREIGN = {"torch", "torchvision", "tests", "configs", "experiments", "benchmarks"}
"""Modules that no part of the package may import: the oracle, and code that is built on the package."""

LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def module_name(file: Path) -> str:
    parts = ("zppo_jax", *file.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str | None:
    """`zppo_jax.data.digits` -> `data`; None outside the package and for the package itself."""
    root, *rest = module.split(".")
    return rest[0] if root == "zppo_jax" and rest else None


def imports(tree: ast.AST, package: str, top_level_only: bool = False) -> Iterator[tuple[str, int]]:
    """(module, line) of each import; those in functions are lazy and left out if `top_level_only`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(
                    [*package.split(".")[: len(package.split(".")) - node.level + 1], *filter(None, [base])]
                )
            # `from zppo_jax import train` imports a module too.
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)
        elif not (top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            yield from imports(node, package, top_level_only)


def faults(name: str, source: str, is_package: bool = False) -> list[str]:
    """The imports of a module that go the wrong way."""
    package = name if is_package else name.rpartition(".")[0]
    tree, part = ast.parse(source), part_of(name)
    found = []
    for module, line in imports(tree, package):
        target, root = part_of(module), module.split(".")[0]
        if root in FOREIGN:
            found.append(f"{name}:{line} imports {root}, which the package may not")
        level = LEVEL["main" if name in COMMANDS else part] if part else 0
        if part and target in LEVEL and target != part and LEVEL[target] >= level:
            found.append(f"{name}:{line} imports {module}: {part} may not import {target}")
    if part in HOST_ONLY and name not in WITH_JAX:
        for module, line in imports(tree, package, top_level_only=True):
            target, root = part_of(module), module.split(".")[0]
            host_only = target in HOST_ONLY and not any(f"{module}.".startswith(f"{one}.") for one in WITH_JAX)
            if root in DEVICE_LIBRARIES or (target in LEVEL and not host_only):
                found.append(f"{name}:{line} imports {module}: {part} is host-only")
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_imports_go_one_way(file):
    found = faults(module_name(file), file.read_text(), file.name == "__init__.py")
    assert not found, "\n".join(found)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The modules that import each other, directly or through others; a list for each circle."""
    reached: dict[str, set[str]] = {}
    for name in graph:
        reached[name], waiting = set(), [name]
        while waiting:
            new = graph[waiting.pop()] - reached[name]
            reached[name] |= new
            waiting += new
    found = {frozenset(other for other in reached[name] if name in reached[other]) for name in graph}
    return sorted(sorted(circle) for circle in found if circle)


def import_graph(sources: dict[str, str], packages: set[str]) -> dict[str, set[str]]:
    """The modules that each module imports, including imports for a type checker and in functions. The import of a name
    from a package's __init__ counts as one of the module that defines it, not of the package."""
    graph: dict[str, set[str]] = {}
    for name, source in sources.items():
        found = {
            module for module, _ in imports(ast.parse(source), name if name in packages else name.rpartition(".")[0])
        }
        resolved = {module if module in sources else module.rpartition(".")[0] for module in found}
        graph[name] = {module for module in resolved if module in sources and module != name}
    for package in packages:  # a package is imported before its modules, but they do not import it
        for name in graph:
            if name.startswith(f"{package}."):
                graph[name].discard(package)
    return graph


def test_no_modules_import_each_other_in_a_circle():
    sources = {module_name(file): file.read_text() for file in FILES}
    packages = {module_name(file) for file in FILES if file.name == "__init__.py"}
    assert circles(import_graph(sources, packages)) == []


def test_a_circle_is_found():
    sources = {
        "zppo_jax.a": "from zppo_jax.b import x",
        "zppo_jax.b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from zppo_jax import c",
        "zppo_jax.c": "def f():\n    import zppo_jax.a",
        "zppo_jax.d": "from zppo_jax import a",
    }
    assert circles(import_graph(sources, {"zppo_jax"})) == [["zppo_jax.a", "zppo_jax.b", "zppo_jax.c"]]


def test_the_readme_names_every_part():
    words = (PACKAGE.parent / "README.md").read_text().partition("## Where things are")[2]
    missing = [part for part in LEVEL if f"`{part}/`" not in words and f"`{part}.py`" not in words]
    assert not missing, f"README's map lacks {missing}"


def test_every_part_has_a_layer():
    parts = {part_of(module_name(file)) for file in FILES} - {None}
    assert parts <= LEVEL.keys(), f"give {parts - LEVEL.keys()} a place in LAYERS"


@pytest.mark.parametrize(
    ("name", "source", "words"),
    [
        ("zppo_jax.types", "from zppo_jax.config import Config", "types may not import config"),
        ("zppo_jax.data.digits", "import zppo_jax.rollout.slots", "data may not import rollout"),
        ("zppo_jax.update.step", "def f():\n    from zppo_jax import train", "update may not import train"),
        ("zppo_jax.update.step", "from .. import train", "update may not import train"),
        ("zppo_jax.rewards.pool", "import jax.numpy as jnp", "rewards is host-only"),
        ("zppo_jax.zppo.select", "try:\n    import jax\nexcept ImportError: pass", "zppo is host-only"),
        ("zppo_jax.data.pipeline", "from zppo_jax.models import qwen3_5", "data is host-only"),
        ("zppo_jax.models.qwen3_5.hf", "import torch", "imports torch"),
        ("zppo_jax.train", "from configs import tiny", "imports configs"),
    ],
)
def test_a_wrong_import_is_found(name, source, words):
    assert any(words in fault for fault in faults(name, source))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("zppo_jax.main", "def run():\n    from zppo_jax import train"),
        ("zppo_jax.data.pipeline", "import grain\nfrom zppo_jax.processor import Processor\nfrom . import digits"),
        ("zppo_jax.rollout.engine", "import jax\nfrom zppo_jax.models import qwen3_5"),
    ],
)
def test_a_right_import_is_let_through(name, source):
    assert faults(name, source) == []
