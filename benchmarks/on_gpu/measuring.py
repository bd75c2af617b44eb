"""Common parts of the scripts for a GPU: the option --small, the lines that they print, and how they measure."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any


def parser(description: str | None) -> argparse.ArgumentParser:
    """Makes a parser with the script's docstring, unchanged, as help."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--small", action="store_true", help="small sizes, on any device: to see that the script runs")
    return made


def has_device(small: bool) -> bool:
    """Whether there is something to measure on; without a GPU and --small, prints a line about that."""
    import jax

    device = jax.local_devices()[0]
    if device.platform == "gpu" or small:
        return True
    print(json.dumps({"device": device.device_kind, "measured": False, "why": "there is no GPU here"}), flush=True)
    return False


def emit(case: str, small: bool, **values: Any) -> None:
    """Prints the line of a case; real numbers are rounded to four digits."""
    import jax

    facts = {"case": case, "device": jax.local_devices()[0].device_kind, "jax": jax.__version__, "small": small}
    print(json.dumps(facts | {name: rounded(value) for name, value in values.items()}), flush=True)


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def seconds_of(run: Callable[[], Any], repeats: int) -> float:
    """Median wall seconds of runs, each waited for, after one that does not count."""
    import jax

    jax.block_until_ready(run())
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def copy_bandwidth(num_bytes: int) -> float:
    """Bytes per second, read and written, of a copy of a large array on the device."""
    import jax
    import jax.numpy as jnp

    array = jnp.ones(num_bytes // 2, jnp.bfloat16)
    copy = jax.jit(lambda x: x + jnp.bfloat16(1))
    return 2 * num_bytes / seconds_of(lambda: copy(array), 10)


def product_tflops(size: int) -> float:
    """TFLOP/s of a bfloat16 product of square matrices."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones((size, size), jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    return 2e-12 * size**3 / seconds_of(lambda: product(x, x), 10)


def peak_gib() -> float:
    """The most device memory in use so far; 0 where devices do not say."""
    import jax

    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) / 2**30
