"""The update of the 0.8B model in bfloat16 on a GPU: packed rows of 8,192 tokens; then attention by two libraries.

    python -m benchmarks.update_gpu [--model=0.8B] [--groups=4] [--rollouts=15] [--prompt=512] [--new=512]
                                    [--rows=1] [--any-device]

Two JSON lines. The first: seconds of `Learner.update` (gradients of all rows, AdamW with the paper's bfloat16 state),
tokens per second of prompts and responses, each counted once, and utilisation: model FLOPs
(zppo_jax/models/qwen3_5/flops.py, with the keys that a token sees in its row) over these seconds and the measured speed
of a product of 8192 x 8192 matrices. Memory: the peak in use, and the compiler's number for the gradient. To see it run
without a GPU, in a minute:

    python -m benchmarks.update_gpu --any-device --model=1.12M --groups=1 --rollouts=3 --prompt=64 --new=64
        --product=512

The second: milliseconds of causal attention over 8,192 tokens with heads of 256, forward, and forward and backward, by
XLA and cuDNN through `jax.nn.dot_product_attention`, and by our function.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import gpu, models, update_ours
from benchmarks.update_cases import Case
from benchmarks.utilisation import product_tflops, seconds_of
from zppo_jax import compilation
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import flops
from zppo_jax.models.qwen3_5.attention import attend

CASE, GOAL = "update-0.8B-gpu", 0.4
_BFLOAT16 = {
    "model": {"dtype": "bfloat16", "remat": "block"},
    "optimizer": {"state_dtype": "bfloat16", "parameter_rounding": "kahan", "learning_rate": 1e-6},
}


def keys_seen(case: Case) -> float:
    """Mean number of keys that a token of a prompt and its responses sees: itself and those before it on its branch."""
    trunk, branches = case.prompt - 1, case.rollouts * case.new
    seen = trunk * (trunk + 1) / 2 + branches * (trunk + (case.new + 1) / 2)
    return seen / (trunk + branches)


def num_tokens(case: Case) -> int:
    """The number of tokens of a step, with every prompt once."""
    return case.prompts * (case.prompt - 1 + case.rollouts * case.new)


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Seconds and memory of an update with random weights and rollouts."""
    config = models.config(case.model)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), qwen3_5.init_params(config, jax.random.key(0)))
    with compilation.compiler() as compiler:
        settings = update_ours.settings(case, **_BFLOAT16)
        _, learner = update_ours.make_parts(case, settings, qwen3_5.Model(config, params), compiler)
        groups, held = update_ours.recorded_groups(case, config), {"state": learner.init(params)}

        def run() -> Any:
            held["state"] = learner.update(held["state"], groups, seed=0, step=1)[0]
            return held["state"]

        seconds = seconds_of(run, repeats)
        needs = compiler.program("gradient", lambda: None).compiled.memory_analysis()
    work = flops.of_training(config, round(2 * keys_seen(case))) * num_tokens(case)
    return {
        "update_seconds": seconds,
        "tokens_per_second": round(num_tokens(case) / seconds),
        "tflops": work / seconds / 1e12,
        "row_tokens": learner.shapes.num_tokens,
        "compiled_gib": _gib(needs.temp_size_in_bytes + needs.argument_size_in_bytes) if needs else None,
        "peak_gib": _gib((jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)),
    }


def _gib(num_bytes: int) -> float:
    return round(num_bytes / 2**30, 2)


def attention(length: int, repeats: int) -> dict[str, Any]:
    """Milliseconds [forward, forward and backward] of the 0.8B model's attention, or the reason why there are none."""
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
        return [round(1e3 * seconds_of(lambda run=run: run(*qkv), repeats), 3) for run in (forward, both)]
    except Exception as error:  # any refusal of a library
        return " ".join(str(error).split())[:200]


def main() -> None:
    parser = gpu.parser(__doc__)
    parser.add_argument("--model", default="0.8B", choices=models.NAMES)
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--rollouts", type=int, default=15)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=512)
    parser.add_argument("--rows", type=int, default=1, help="computed at once")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--product", type=int, default=8192, help="size of the product that gives the measured peak")
    options = parser.parse_args()
    facts = gpu.facts(CASE, options)
    if facts is None:
        return
    length = options.prompt + options.rollouts * options.new
    shape = {"prompts": options.groups, "rollouts": options.rollouts, "prompt": options.prompt, "new": options.new}
    case = Case(CASE, "update", options.model, "", GOAL, GOAL, row_tokens=length, rows=options.rows, **shape)
    peak = product_tflops(options.product)
    result = measure(case, options.repeats)
    result |= {"measured_peak_tflops": peak, "utilisation": result["tflops"] / peak, "goal": GOAL}
    print(json.dumps(facts | {"measured": True} | result), flush=True)
    print(json.dumps({"case": "attention-gpu", "tokens": length} | attention(length, options.repeats)))


if __name__ == "__main__":
    main()
