"""The program of the tests of sharded log-probabilities, in a separate process with eight fake devices.

    python -m tests.parallel.program_logprobs OUT.json

Writes {case: {"errors": {name: relative to the largest}, numbers of elements: ...}} to OUT.json.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.models.tiny import FAST_COMPILE
from zppo_jax import parallel
from zppo_jax.ops.logprobs import target_logprobs

Arrays = dict[str, jax.Array]

AXES = {
    "hidden": ("batch", None, None),
    "head": ("vocab", "embed"),
    "target": ("batch", None),
    "cotangent": ("batch", None),
    "banned": ("vocab",),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A mesh of data x fsdp x tensor, sizes of the arrays, and the rows of the head in a chunk (None: all)."""

    mesh: tuple[int, int, int]
    rows: int = 8
    tokens: int = 32
    size: int = 16
    vocabulary: int = 4096
    chunk: int | None = 120


CASES = {
    "chunks": Case((2, 2, 2)),
    "kept": Case((2, 2, 2), chunk=None),
    "vocabulary alone": Case((1, 1, 8)),
    "fsdp alone": Case((1, 8, 1)),
    "data alone": Case((8, 1, 1)),
    "vocabulary that does not divide": Case((1, 2, 4), vocabulary=4098),
    "positions that do not divide": Case((2, 2, 2), rows=3, tokens=22),
    "positions that nothing divides": Case((2, 2, 2), rows=3, tokens=21),
    "width that does not divide": Case((1, 4, 2), size=18),
}


def draw(case: Case) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    positions = (case.rows, case.tokens)
    banned_V = rng.random(case.vocabulary) < 0.1
    banned_V[: case.vocabulary // 8] = True  # whole chunks, and all that one device of eight has
    return {
        "hidden": 2 * rng.standard_normal((*positions, case.size), np.float32),
        "head": rng.standard_normal((case.vocabulary, case.size), np.float32),
        "target": rng.choice(np.flatnonzero(~banned_V), positions).astype(np.int32),
        "cotangent": rng.standard_normal(positions, np.float32),
        "banned": banned_V,
    }


def gradients(arrays: Arrays, chunk: int | None) -> Arrays:
    def values(hidden: jax.Array, head: jax.Array) -> jax.Array:
        return target_logprobs(hidden, head, arrays["target"], 0.7, arrays["banned"], chunk)

    value, pull = jax.vjp(values, arrays["hidden"], arrays["head"])
    slopes = zip(("hidden", "head"), pull(arrays["cotangent"]), strict=True)
    return {"value": value} | {name: parallel.constrain(slope, *AXES[name]) for name, slope in slopes}


def everything(arrays: Arrays, chunk: int | None) -> Arrays:
    """Values, gradients, and the gradient of a head that is the embedding, too."""

    def tied(head: jax.Array) -> jax.Array:
        embedded = jnp.take(parallel.constrain(head, "vocab", None), arrays["target"], axis=0)
        values = target_logprobs(arrays["hidden"] + embedded, head, arrays["target"], 0.7, arrays["banned"], chunk)
        return jnp.sum(arrays["cotangent"] * values)

    tied_gradient = parallel.constrain(jax.grad(tied)(arrays["head"]), *AXES["head"])
    return gradients(arrays, chunk) | {"tied": tied_gradient}


_everything = jax.jit(everything, static_argnames="chunk", compiler_options=FAST_COMPILE)
_gradients = jax.jit(gradients, static_argnames="chunk")


def errors(expected: Any, actual: Any) -> dict[str, float]:
    """Largest difference of each array, relative to its largest magnitude."""

    def relative(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.abs(one - other).max() / np.abs(one).max())

    return jax.tree.map(relative, jax.device_get(expected), jax.device_get(actual))


def sizes(text: str) -> list[int]:
    """Elements of every array that a compiled program names."""
    return [math.prod(map(int, dims.split(","))) for dims in re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", text)]


def compare(case: Case) -> dict[str, Any]:
    arrays = draw(case)
    mesh = parallel.make_mesh(*case.mesh)
    expected = _everything(arrays, chunk=None)
    with parallel.use(mesh):
        placed = parallel.place(mesh, arrays, AXES)
        actual = _everything(placed, chunk=case.chunk)
        text = _gradients.lower(placed, chunk=case.chunk).compile().as_text() or ""
        positions, vocabulary = parallel.cut("batch", case.rows * case.tokens), parallel.cut("vocab", case.vocabulary)
    exchanges = re.findall(r"= (.*) (?:all-|reduce-scatter|collective-)[a-z\-]*\(", text)
    return {
        "errors": errors(expected, actual),
        "largest_array": max(sizes(text)),
        "largest_exchange": max(sizes("\n".join(exchanges)), default=0),
        "own_head": placed["head"].addressable_data(0).size,
        "own_positions": positions[1],
        "own_vocabulary": vocabulary[1],
    }


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    result = {name: compare(case) for name, case in CASES.items()}
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main()
