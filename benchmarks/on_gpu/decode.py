"""Decoding with the 0.8B model in bfloat16: tokens per second of 256 rows, and the share of the memory's bandwidth.

    python -m benchmarks.on_gpu.decode [--small] [--questions=32] [--rollouts=8] [--prompt=512] [--new=512]

Random weights, no stop tokens; every rollout of every question is decoded at the same time. `tokens_per_second` are
those of whole calls, prefill included. A step of decoding takes the seconds of a whole call less those of one that ends
after a chunk, over the steps between them; `decode_tokens_per_second` are the rows over that.

Bytes of a step, at least:

    weights of the language model            once (the embedding is the head, too)
  + recurrent states and contexts            read and written, all rows
  + keys and values of the tokens so far     read, all rows; on average the prompt and half of the new tokens

`bandwidth_share` is these bytes over the seconds of a step and the measured bandwidth of a copy (read and written
bytes). The goal is 0.5.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax

from benchmarks import models
from benchmarks.on_gpu import measuring
from benchmarks.rollout_cases import Case
from benchmarks.rollout_ours import make_engine, text_features
from zppo_jax import compilation
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.rollout.requests import Request
from zppo_jax.rollout.sample import sample

GOAL = 0.5


def step_bytes(config: Config, rows: int, context: float) -> dict[str, float]:
    """The least bytes that a decoding step must move, by kind; see the top of this file."""
    shape = config.text
    text = qwen3_5.abstract_params(config)["text"]
    embedding = 0 if shape.tie_word_embeddings else text["embed"].size  # a row for each token
    linear = shape.num_groups * shape.num_linear
    state = shape.linear_num_value_heads * shape.linear_key_head_dim * shape.linear_value_head_dim
    taps = shape.conv_dim * (shape.linear_conv_kernel_dim - 1)
    keys = 2 * shape.num_groups * shape.num_key_value_heads * shape.head_dim
    return {
        "weights": 2.0 * (sum(leaf.size for leaf in jax.tree.leaves(text)) - embedding),
        "recurrent states": 2 * 4.0 * rows * linear * state,
        "convolution contexts": 2 * 2.0 * rows * linear * taps,
        "keys and values": 2.0 * rows * context * keys,
    }


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Tokens per second of whole calls, seconds of a step, and the bytes per second of a step."""
    config = models.config(case.model)
    params = models.random_params(config)
    ids_BT = case.token_ids(config.text.vocab_size)
    with compilation.compiler() as compiler:
        engine = make_engine(case, config, compiler)

        def run(new: int) -> Callable[[], None]:
            requests = [
                Request(f"question {index}", text_features(config, ids_T), case.rollouts, max_new_tokens=new)
                for index, ids_T in enumerate(ids_BT)
            ]
            return lambda: _require(num_tokens(sample(engine, params, requests)), case.slots * new)

        start = time.perf_counter()
        short = measuring.seconds_of(run(engine.chunk), repeats)
        first = time.perf_counter() - start
        whole = measuring.seconds_of(run(case.new), repeats)
    step_seconds = (whole - short) / (case.new - engine.chunk)
    parts = step_bytes(config, case.slots, case.prompt + case.new / 2)
    return {
        "rows": case.slots,
        "tokens_per_second": case.tokens / whole,
        "decode_tokens_per_second": case.slots / step_seconds,
        "step_milliseconds": 1e3 * step_seconds,
        "step_gb": {name: value / 1e9 for name, value in parts.items()},
        "gb_per_second": sum(parts.values()) / step_seconds / 1e9,
        "first_seconds": first,
        "peak_gib": measuring.peak_gib(),
    }


def num_tokens(groups: list[list[Any]]) -> int:
    return sum(len(sample.token_ids_T) for group in groups for sample in group)


def _require(tokens: int, expected: int) -> None:
    if tokens != expected:
        raise RuntimeError(f"{tokens} tokens instead of {expected}")


def case_of(small: bool, questions: int, rollouts: int, prompt: int, new: int) -> Case:
    """The case of these sizes with the 0.8B model; with `small`, one that a CPU runs in seconds."""
    shape = ("0.1M", 2, 2, 16, 24) if small else ("0.8B", questions, rollouts, prompt, new)
    return Case("decode", *shape, floor=GOAL, goal=GOAL, slots=shape[1] * shape[2])


def main(arguments: list[str] | None = None) -> None:
    parser = measuring.parser(__doc__)
    for name, default in {"questions": 32, "rollouts": 8, "prompt": 512, "new": 512, "repeats": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(arguments)
    if not measuring.has_device(options.small):
        return
    case = case_of(options.small, options.questions, options.rollouts, options.prompt, options.new)
    bandwidth = measuring.copy_bandwidth(2**20 if options.small else 2**32)
    result = measure(case, 1 if options.small else options.repeats)
    result |= {"copy_gb_per_second": bandwidth / 1e9, "goal": GOAL}
    result["bandwidth_share"] = result["gb_per_second"] * 1e9 / bandwidth
    measuring.emit("decode", options.small, **result)


if __name__ == "__main__":
    main()
