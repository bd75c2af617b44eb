"""Products with the kernels of the 27B teacher: FP8 weights against bfloat16 weights.

    python -m benchmarks.on_gpu.products [--small] [--rows=1,64,256,4096]

A line for each kernel of a layer and number of rows, with milliseconds and TFLOP/s of three ways:

    bfloat16       x @ W
    dequantised    W is float8 with a scale for each block of 128 x 128, made bfloat16 inside the program, as the
                   teacher does it: a product of few rows should be limited by reading half of the bytes
    float8         both are float8 with one scale each: the best that the hardware could do, not what the teacher
                   computes

`gb_per_second` are the bytes of the weights over the time: of few rows, near the copy's bandwidth at best.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.on_gpu import measuring
from zppo_jax.models.qwen3_5 import quantised, sizes

BLOCK = 128


def kernels() -> dict[str, tuple[int, int]]:
    """{name: (inputs, outputs)} of the large kernels of a layer of the 27B model."""
    shape = sizes.get("27B").text
    values = shape.linear_num_value_heads * shape.linear_value_head_dim
    heads = shape.num_attention_heads * shape.head_dim
    return {
        "mlp gate": (shape.hidden_size, shape.intermediate_size),
        "mlp down": (shape.intermediate_size, shape.hidden_size),
        "linear qkv": (shape.hidden_size, shape.conv_dim),
        "linear out": (values, shape.hidden_size),
        "full q and gate": (shape.hidden_size, 2 * heads),
    }


def ways(num_rows: int, inputs: int, outputs: int) -> dict[str, tuple[Callable[..., jax.Array], tuple[Any, ...], int]]:
    """{name: (function, arguments, bytes of the weights)}."""
    keys = jax.random.split(jax.random.key(0), 2)
    x, kernel = jax.random.normal(keys[0], (num_rows, inputs)), jax.random.normal(keys[1], (inputs, outputs))
    scale, one = jnp.ones((-(-inputs // BLOCK), -(-outputs // BLOCK))), jnp.float32(1)
    plain = x.astype(jnp.bfloat16)

    def in_float8(x: jax.Array, kernel: jax.Array, x_scale: jax.Array, scale: jax.Array) -> jax.Array:
        product = jnp.matmul(x, kernel, preferred_element_type=jnp.float32)
        return (product * (x_scale * scale)).astype(jnp.bfloat16)

    size = inputs * outputs
    return {
        "bfloat16": (jnp.matmul, (plain, kernel.astype(jnp.bfloat16)), 2 * size),
        "dequantised": (
            lambda x, kernel, scale: x @ quantised.dequantise(kernel, scale, x.dtype),
            (plain, kernel.astype(quantised.DTYPE), scale),
            size,
        ),
        "float8": (in_float8, (x.astype(quantised.DTYPE), kernel.astype(quantised.DTYPE), one, one), size),
    }


def measure(num_rows: int, inputs: int, outputs: int, repeats: int) -> dict[str, Any]:
    """{way: milliseconds, TFLOP/s and GB/s of the weights, or the reason why there are none}."""
    found: dict[str, Any] = {}
    for name, (function, arguments, num_bytes) in ways(num_rows, inputs, outputs).items():
        run = jax.jit(function)
        try:
            seconds = measuring.seconds_of(lambda run=run, arguments=arguments: run(*arguments), repeats)
        except jax.errors.JaxRuntimeError as error:  # an older card has no float8
            found[name] = {"measured": False, "why": " ".join(str(error).split())[:200]}
            continue
        found[name] = {
            "milliseconds": 1e3 * seconds,
            "tflops": 2e-12 * num_rows * inputs * outputs / seconds,
            "gb_per_second": 1e-9 * num_bytes / seconds,
        }
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--rows", default="1,64,256,4096")
    options = parser.parse_args(arguments)
    if not measuring.has_device(options.small):
        return
    chosen = {"small": (2 * BLOCK, BLOCK)} if options.small else kernels()
    for num_rows in (4,) if options.small else map(int, options.rows.split(",")):
        for name, (inputs, outputs) in chosen.items():
            found = measure(num_rows, inputs, outputs, 1 if options.small else 20)
            shape = f"{num_rows} x {inputs} x {outputs}"
            measuring.emit("fp8-product", options.small, kernel=name, shape=shape, **found)


if __name__ == "__main__":
    main()
