"""The speed of matrix products on one core, by XLA and by torch: the upper bound of every other figure.

    python -m benchmarks.products (ours|peer) SHAPES ROWS CORES     # SHAPES such as 1024x3584,3584x1024

prints {"in x out": GFLOP/s} for x @ W, and for the gradient of W, with x of ROWS rows. benchmarks.parts starts it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np

from benchmarks import worker

REPEATS = 7


def best(run: Callable[[], object]) -> float:
    """The shortest CPU time of a few runs, after one that does not count."""
    run()
    seconds = []
    for _ in range(REPEATS):
        before = time.process_time()
        run()
        seconds.append(time.process_time() - before)
    return min(seconds)


def rates(side: str, shapes: list[tuple[int, int]], num_rows: int) -> dict[str, list[float]]:
    """{"in x out": [GFLOP/s of x @ W, GFLOP/s of x^T @ slope]}."""
    result = {}
    for size, out in shapes:
        rng = np.random.default_rng(0)
        arrays = [rng.standard_normal(shape, np.float32) for shape in ((num_rows, size), (size, out), (num_rows, out))]
        forward, gradient = _xla(*arrays) if side == "ours" else _torch(*arrays)
        flops = 2e-9 * num_rows * size * out
        result[f"{size} x {out}"] = [round(flops / best(forward)), round(flops / best(gradient))]
    return result


def _xla(*arrays: np.ndarray) -> tuple[Callable[[], object], Callable[[], object]]:
    import jax
    import jax.numpy as jnp

    x, weight, slope = (jnp.asarray(array) for array in arrays)
    product, gradient = jax.jit(jnp.matmul), jax.jit(lambda x, slope: x.T @ slope)
    return lambda: product(x, weight).block_until_ready(), lambda: gradient(x, slope).block_until_ready()


def _torch(*arrays: np.ndarray) -> tuple[Callable[[], object], Callable[[], object]]:
    import torch

    torch.set_num_threads(1)
    x, weight, slope = (torch.from_numpy(array) for array in arrays)
    transposed = weight.T.contiguous()  # as torch keeps the weight of a Linear
    return lambda: torch.nn.functional.linear(x, transposed), lambda: slope.T @ x


if __name__ == "__main__":
    worker.pin([int(core) for core in sys.argv[4].split(",")])
    pairs = [(int(size), int(out)) for size, out in (pair.split("x") for pair in sys.argv[2].split(","))]
    print(json.dumps(rates(sys.argv[1], pairs, int(sys.argv[3]))))
