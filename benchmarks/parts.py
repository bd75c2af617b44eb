"""The CPU time of a case by part: the parts of the program timed one by one, each compiled alone.

    python -m benchmarks.parts [MODEL ...] [--core=0]

One JSON line per model: each part's CPU milliseconds forward, and forward + backward, times the number of its layers.
The time of the whole program (of benchmarks.model) minus all parts is the rest: copies between the parts, slices of the
stacked weights, and page faults of temporaries, which the parts alone hardly have. Also GFLOP/s of the products with
weights on both sides.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import worker
from benchmarks.cases import CASES, Case

Part = tuple[str, int, Callable[..., Any], tuple[Any, ...]]


def shapes_of_products(text: Any) -> list[tuple[str, int, int, int]]:
    """(part, count, inputs, outputs) of all products with weights except the vocabulary's."""
    linear, full, layers = text.num_groups * text.num_linear, text.num_groups, text.num_hidden_layers
    size, heads, kv = text.hidden_size, text.num_attention_heads * text.head_dim, text.num_key_value_heads
    return [
        ("mlp products", 2 * layers, size, text.intermediate_size),
        ("mlp products", layers, text.intermediate_size, size),
        ("linear-attention products", linear, size, text.conv_dim),
        ("linear-attention products", linear, size, text.value_dim),
        ("linear-attention products", 2 * linear, size, text.linear_num_value_heads),
        ("linear-attention products", linear, text.value_dim, size),
        ("attention products", full, size, 2 * heads),
        ("attention products", 2 * full, size, kv * text.head_dim),
        ("attention products", full, heads, size),
    ]


def parts(case: Case, text: Any) -> Iterator[Part]:
    """Yields (name, count, function, arguments): the library's functions on random arguments of the case's shapes."""
    import jax
    import jax.numpy as jnp

    from zppo_jax.models.qwen3_5 import deltanet
    from zppo_jax.models.qwen3_5.attention import attend
    from zppo_jax.ops.conv import causal_conv
    from zppo_jax.ops.gated_delta import gated_delta_chunked
    from zppo_jax.ops.logprobs import target_logprobs

    keys = iter(jax.random.split(jax.random.key(0), 100))
    rows = (case.batch, case.length)

    def noise(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), shape, jnp.float32)

    for name, count, size, out in shapes_of_products(text):
        yield name, count, jnp.matmul, (noise(case.tokens, size), noise(size, out) * size**-0.5)
    linear, layers = text.num_groups * text.num_linear, text.num_hidden_layers
    heads, key_dim, value_dim = text.linear_num_value_heads, text.linear_key_head_dim, text.linear_value_head_dim
    query, key = (deltanet.l2_normalise(noise(*rows, heads, key_dim)) for _ in range(2))
    decay, strength = -jax.nn.softplus(noise(*rows, heads)), jax.nn.sigmoid(noise(*rows, heads))
    state = jnp.zeros((case.batch, heads, key_dim, value_dim))
    arguments = (query * key_dim**-0.5, key, noise(*rows, heads, value_dim), decay, strength, state)
    yield "delta rule", linear, gated_delta_chunked, arguments
    context = jnp.zeros((case.batch, text.linear_conv_kernel_dim - 1, text.conv_dim))
    kernel = noise(text.linear_conv_kernel_dim, text.conv_dim)
    taps = (noise(*rows, text.conv_dim), kernel, context)
    yield "convolution and silu", linear, lambda *taps: jax.nn.silu(causal_conv(*taps)), taps

    def visible(start: Any, length: int) -> jax.Array:
        order_Q = start + jnp.arange(length)
        return jnp.broadcast_to(jnp.arange(case.length) <= order_Q[:, None], (case.batch, length, case.length))

    key_value = [noise(*rows, text.num_key_value_heads, text.head_dim) for _ in range(2)]
    query = noise(*rows, text.num_attention_heads, text.head_dim)
    yield "attention", text.num_groups, lambda q, k, v: attend(q, k, v, visible), (query, *key_value)
    yield "norms", 2 * layers, _rms_norm, (noise(*rows, text.hidden_size), noise(text.hidden_size))
    inner = (noise(case.tokens, text.intermediate_size), noise(case.tokens, text.intermediate_size))
    yield "mlp silu", layers, lambda gate, up: jax.nn.silu(gate) * up, inner
    targets, banned = jnp.arange(case.tokens), jnp.zeros(text.vocab_size, bool)
    head = (noise(case.tokens, text.hidden_size), noise(text.vocab_size, text.hidden_size) * 0.02)
    yield "vocabulary", 1, lambda hidden, head: target_logprobs(hidden, head, targets, 1.0, banned), head


def _rms_norm(x: Any, weight: Any) -> Any:
    import jax
    import jax.numpy as jnp

    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * (1.0 + weight)


def part_milliseconds(function: Callable[..., Any], arguments: tuple[Any, ...]) -> list[float]:
    """CPU milliseconds [forward, forward + backward]."""
    import jax
    import jax.numpy as jnp

    from benchmarks.products import best

    slopes = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), jax.eval_shape(function, *arguments))
    forward = jax.jit(function)

    @jax.jit
    def both(slopes: Any, *arguments: Any) -> Any:
        result, backward = jax.vjp(function, *arguments)
        return result, backward(slopes)  # without the result, XLA would leave out what the gradient does not need

    return [
        1e3 * best(lambda: jax.block_until_ready(forward(*arguments))),
        1e3 * best(lambda: jax.block_until_ready(both(slopes, *arguments))),
    ]


def whole_milliseconds(case: Case, config: Any) -> list[float]:
    """CPU milliseconds of the two programs of benchmarks.model, [prefill, training]."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    from benchmarks import ours
    from benchmarks.products import best
    from zppo_jax.compilation import Compiler
    from zppo_jax.models import qwen3_5
    from zppo_jax.models.qwen3_5 import inputs

    params = qwen3_5.init_params(config, jax.random.key(0))
    ids_BT = case.token_ids(config.text.vocab_size)
    batch = jax.tree.map(jnp.asarray, inputs.from_hf(config, input_ids=ids_BT)[0])
    result = []
    for kind in ("prefill", "training"):
        program = ours.program(dataclasses.replace(case, kind=kind), config)
        compiled = Compiler().program(kind, lambda program=program: jax.jit(program).lower(params, batch))
        result.append(1e3 * best(lambda compiled=compiled: jax.block_until_ready(compiled(params, batch))))
    return result


def table(case: Case, config: Any) -> dict[str, list[float]]:
    """CPU milliseconds [in prefill, in training] of each part over all layers, the rest, and the whole. In prefill the
    vocabulary's product is for one position only, which is negligible."""
    result: dict[str, list[float]] = {}
    for name, count, function, arguments in parts(case, config.text):
        pair = part_milliseconds(function, arguments)
        before = result.get(name, [0.0, 0.0])
        result[name] = [old + count * new for old, new in zip(before, pair, strict=True)]
    result["vocabulary"][0] = 0.0
    whole = whole_milliseconds(case, config)
    sums = [sum(part[index] for part in result.values()) for index in range(2)]
    result["rest"] = [one - other for one, other in zip(whole, sums, strict=True)]
    result["whole"] = whole
    return {name: [round(value, 1) for value in pair] for name, pair in result.items()}


def _product_rates(case: Case, text: Any, core: int) -> dict[str, Any]:
    """GFLOP/s of both sides, each in a separate process."""
    pairs = [(size, out) for _, _, size, out in shapes_of_products(text) if out > 100]
    shapes = ",".join(f"{size}x{out}" for size, out in [*dict.fromkeys(pairs), (text.hidden_size, text.vocab_size)])
    rates = {}
    for side in ("ours", "peer"):
        command = [sys.executable, "-m", "benchmarks.products", side, shapes, str(case.tokens), str(core)]
        rates[side] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return rates


def main() -> None:
    training = {case.model: case for case in CASES.values() if case.kind == "training"}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(training)}; all, unless given")
    parser.add_argument("--core", type=int, default=0)
    options = parser.parse_args()
    worker.pin([options.core])
    from benchmarks import models
    from zppo_jax import compilation

    compilation.keep_memory()
    for name in options.models or training:
        case, config = training[name], models.config(name)
        facts = {"model": name, "batch": case.batch, "length": case.length}
        rates = _product_rates(case, config.text, options.core)
        columns = ["prefill", "training"]
        print(json.dumps(facts | {"cpu_ms": {"columns": columns, **table(case, config)}, "gflops": rates}), flush=True)


if __name__ == "__main__":
    main()
