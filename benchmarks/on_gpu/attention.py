"""Causal attention over 8,192 tokens with the 0.8B model's heads of 256: ours, XLA's and cuDNN's.

    python -m benchmarks.on_gpu.attention [--small] [--length=8192]

Milliseconds forward, and forward and backward, of our function and of `jax.nn.dot_product_attention`; where a library
refuses, its reason.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import models
from benchmarks.on_gpu import measuring
from zppo_jax.models.qwen3_5.attention import attend


def attention(length: int, repeats: int) -> dict[str, list[float] | str]:
    """Milliseconds [forward, forward and backward] of each way, or the reason why there are none."""
    shape = models.config("0.8B").text
    keys = jax.random.split(jax.random.key(0), 3)
    heads = (shape.num_attention_heads, shape.num_key_value_heads, shape.num_key_value_heads)
    parts = zip(keys, heads, strict=True)
    qkv = [jax.random.normal(key, (1, length, number, shape.head_dim), jnp.bfloat16) for key, number in parts]

    def visible(start: Any, number: int) -> jax.Array:
        return (jnp.arange(length) <= (start + jnp.arange(number))[:, None])[None]

    ways: dict[str, Callable[..., jax.Array]] = {"ours": lambda q, k, v: attend(q, k, v, visible)}
    for library in ("xla", "cudnn"):
        ways[library] = functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation=library)
    return {name: _milliseconds(way, qkv, repeats) for name, way in ways.items()}


def _milliseconds(way: Callable[..., jax.Array], qkv: list[jax.Array], repeats: int) -> list[float] | str:
    forward = jax.jit(way)
    both = jax.jit(jax.value_and_grad(lambda *qkv: jnp.sum(way(*qkv).astype(jnp.float32)), argnums=(0, 1, 2)))
    try:
        return [round(1e3 * measuring.seconds_of(lambda run=run: run(*qkv), repeats), 3) for run in (forward, both)]
    except Exception as error:  # any refusal of a library
        return " ".join(str(error).split())[:200]


def main(arguments: list[str] | None = None) -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--length", type=int, default=8192)
    options = parser.parse_args(arguments)
    if not measuring.has_device(options.small):
        return
    length, repeats = (64, 1) if options.small else (options.length, 5)
    measuring.emit("attention", options.small, tokens=length, milliseconds=attention(length, repeats))


if __name__ == "__main__":
    main()
