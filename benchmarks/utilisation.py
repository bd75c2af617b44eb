"""A training step of the 0.8B model in bfloat16 on a GPU: tokens per second and model FLOPs utilisation.

    python -m benchmarks.utilisation [--model=0.8B] [--rows=4] [--length=4096] [--remat=block] [--any-device]

One JSON line. A step is compiled as in the trainer: log-probabilities of all tokens, their gradient, clipping, AdamW
with the paper's bfloat16 state, and parameters updated in place.

Utilisation is the model's FLOPs (zppo_jax/models/qwen3_5/flops.py) over the seconds of the step and (a) the maker's
stated peak, (b) the speed of a product of 8192 x 8192 matrices, measured before.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import gpu, models
from zppo_jax import compilation
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import flops, inputs, sizes, text, vlm
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.ops.logprobs import target_logprobs
from zppo_jax.update import optimizer

CASE = "training-0.8B-bf16-gpu"
STATED_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0}
"""TFLOP/s of dense bfloat16 products, from the makers' data sheets (the SXM boards)."""


def step(config: Config, transform: optax.GradientTransformation, remat: Any) -> Callable[..., Any]:
    """Makes the function (state, inputs) -> (state, loss)."""

    def loss(language: Any, vision: Any, batch: Any) -> jax.Array:
        hidden_BTD, _ = vlm.prefill({"text": language, "vision": vision}, config, batch, remat)
        targets_BT, banned_V = batch["tokens_BT"][:, 1:], jnp.zeros(config.text.vocab_size, bool)
        return -jnp.mean(target_logprobs(hidden_BTD[:, :-1], text.head(language), targets_BT, 1.0, banned_V))

    def update(state: Any, vision: Any, batch: Any) -> tuple[Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(state["params"], vision, batch)
        changes, kept = transform.update(gradient, state["optimizer"], state["params"])
        return {"params": optax.apply_updates(state["params"], changes), "optimizer": kept}, value

    return update


def seconds_of(run: Callable[[], Any], repeats: int) -> float:
    """Median wall seconds of runs, each waited for, after one that does not count."""
    jax.block_until_ready(run())
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def product_tflops(size: int) -> float:
    """Measured speed of a bfloat16 product of square matrices."""
    x = jnp.ones((size, size), jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    return 2e-12 * size**3 / seconds_of(lambda: product(x, x), 10)


def measure(config: Config, rows: int, length: int, remat: Any, repeats: int) -> dict[str, Any]:
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), qwen3_5.init_params(config, jax.random.key(0)))
    transform = optimizer.adamw(optax.constant_schedule(1e-6), 0.9, 0.999, 1e-8, 0.1, 1.0, "bfloat16", "kahan")
    state, vision = {"params": params["text"], "optimizer": transform.init(params["text"])}, params["vision"]
    ids_BT = np.random.default_rng(0).integers(10, config.text.vocab_size - 300, (rows, length))
    batch = jax.tree.map(jnp.asarray, inputs.from_hf(config, input_ids=ids_BT)[0])
    lowered = jax.jit(step(config, transform, remat), donate_argnums=0).lower
    with compilation.compiler() as compiler:
        start = time.perf_counter()
        program = compiler.program(CASE, lambda: lowered(state, vision, batch))
        held = {"state": state, "loss": jnp.float32(0)}

        def run() -> jax.Array:
            held["state"], held["loss"] = program(held["state"], vision, batch)
            return held["loss"]

        jax.block_until_ready(run())
        compile_seconds = time.perf_counter() - start
        seconds = seconds_of(run, repeats)
    work = flops.of_training(config, length) * rows * length
    return {
        "step_seconds": seconds,
        "tokens_per_second": round(rows * length / seconds),
        "tflops": work / seconds / 1e12,
        "compile_seconds": round(compile_seconds, 1),
        "loss": float(held["loss"]),
        "peak_gib": round((jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) / 2**30, 2),
    }


def main() -> None:
    parser = gpu.parser(__doc__)
    parser.add_argument("--model", default="0.8B", help="a published size, or 10M")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--remat", default="block", choices=("none", "block", "group"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--product", type=int, default=8192, help="size of the product that gives the measured peak")
    options = parser.parse_args()
    facts = gpu.facts(CASE, options)
    if facts is None:
        return
    config = models.config("10M") if options.model == "10M" else sizes.get(options.model)
    peak = product_tflops(options.product)
    result = measure(config, options.rows, options.length, options.remat, options.repeats)
    stated = next((value for name, value in STATED_TFLOPS.items() if name in facts["device"]), None)
    result |= {
        "utilisation_of_stated_peak": result["tflops"] / stated if stated else None,
        "utilisation_of_measured_peak": result["tflops"] / peak,
        "measured_peak_tflops": peak,
        "goal": 0.4,
    }
    print(json.dumps(facts | {"measured": True} | result))


if __name__ == "__main__":
    main()
