"""Sampling with the 0.8B model in bfloat16 on a GPU: tokens per second, and the share of the memory's roofline.

    python -m benchmarks.rollout_gpu [--model=0.8B] [--questions=32] [--rollouts=8] [--prompt=512] [--new=512]
                                     [--any-device]

One JSON line. Random weights, no stop tokens; every rollout of every question is decoded at the same time. Tokens per
second are those of whole calls of `Engine.sample`, prefill included. A step of decoding takes the seconds of a whole
call less those of one that ends after a chunk, over the steps between them.

Bytes of a step, at least:

    weights of the language model            once (the embedding is the head, too)
  + recurrent states and contexts            read and written, all rows
  + keys and values of the tokens so far     read, all rows; on average the prompt and half of the new tokens

The share is these bytes over the seconds of a step and the measured bandwidth of a copy (read and written bytes).
If torch sees a GPU, transformers' `generate` runs first, in a separate process, and `ratio` compares the tokens per
second.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import gpu, models
from benchmarks.rollout_cases import Case
from benchmarks.rollout_ours import make_engine, text_features
from benchmarks.utilisation import seconds_of
from zppo_jax import compilation
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.rollout.requests import Request
from zppo_jax.rollout.sample import sample

CASE = "rollout-0.8B-gpu"
GOAL, PEER_GOAL = 0.5, 20.0


def step_bytes(config: Config, rows: int, context: float) -> dict[str, float]:
    """The least bytes that a decoding step must move, by kind; see the top of this file."""
    shape = config.text
    weights = sum(leaf.size for leaf in jax.tree.leaves(qwen3_5.abstract_params(config)["text"]))
    linear = shape.num_groups * shape.num_linear
    state = shape.linear_num_value_heads * shape.linear_key_head_dim * shape.linear_value_head_dim
    taps = shape.conv_dim * (shape.linear_conv_kernel_dim - 1)
    keys = 2 * shape.num_groups * shape.num_key_value_heads * shape.head_dim
    return {
        "weights": 2.0 * weights,
        "recurrent states": 2 * 4.0 * rows * linear * state,
        "convolution contexts": 2 * 2.0 * rows * linear * taps,
        "keys and values": 2.0 * rows * context * keys,
    }


def copy_bandwidth(num_bytes: int) -> float:
    """Bytes per second, read and written, of a copy of a large array on the device."""
    array = jnp.ones(num_bytes // 2, jnp.bfloat16)
    copy = jax.jit(lambda x: x + jnp.bfloat16(1))
    return 2 * num_bytes / seconds_of(lambda: copy(array), 10)


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Tokens per second of whole calls, seconds of a step, and their share of the roofline without the bandwidth."""
    config = models.config(case.model)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), qwen3_5.init_params(config, jax.random.key(0)))
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
        short = seconds_of(run(engine.chunk), repeats)
        first = time.perf_counter() - start
        whole = seconds_of(run(case.new), repeats)
    step_seconds = (whole - short) / (case.new - engine.chunk)
    parts = step_bytes(config, case.slots, case.prompt + case.new / 2)
    return {
        "tokens_per_second": round(case.tokens / whole, 1),
        "seconds": whole,
        "seconds_of_one_chunk": short,
        "step_seconds": step_seconds,
        "step_gb": {name: round(value / 1e9, 4) for name, value in parts.items()},
        "gb_per_second": sum(parts.values()) / step_seconds / 1e9,
        "compile_seconds": round(first, 1),
        "peak_gib": round((jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) / 2**30, 2),
    }


def num_tokens(groups: list[list[Any]]) -> int:
    return sum(len(sample.token_ids_T) for group in groups for sample in group)


def _require(tokens: int, expected: int) -> None:
    if tokens != expected:
        raise RuntimeError(f"{tokens} tokens instead of {expected}")


def measure_peer(case: Case, any_device: bool) -> dict[str, Any]:
    """Measures `generate` of transformers on the same shapes, with other random weights."""
    try:
        import torch
        import transformers
    except ImportError as error:
        return {"measured": False, "why": str(error)}
    if not (torch.cuda.is_available() or any_device):
        return {"measured": False, "why": "torch sees no GPU"}
    from zppo_jax.models.qwen3_5 import config as configs

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = models.config(case.model)
    settings = transformers.Qwen3_5Config.from_dict(configs.to_dict(shape, "bfloat16"))
    with device:
        model: Any = transformers.Qwen3_5ForConditionalGeneration(settings)
    model = model.to(dtype=torch.bfloat16).eval()
    model.generation_config.eos_token_id = None
    ids_BT = torch.from_numpy(case.token_ids(shape.text.vocab_size)).to(device)

    def run(new: int) -> float:
        start = time.perf_counter()
        with torch.no_grad():
            tokens_BT = model.generate(
                input_ids=ids_BT,
                attention_mask=torch.ones_like(ids_BT),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                num_return_sequences=case.rollouts,
                max_new_tokens=new,
                pad_token_id=0,
            )
        _require(tokens_BT[:, case.prompt :].numel(), case.slots * new)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    run(8)
    seconds = run(case.new)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"measured": True, "tokens_per_second": round(case.tokens / seconds, 1), "seconds": seconds} | versions


def _peer_apart(arguments: list[str]) -> dict[str, Any]:
    """Measures the peer in a process that frees its memory before ours takes nearly all."""
    command = [sys.executable, "-m", "benchmarks.rollout_gpu", "--peer-only", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return {"measured": False, "why": f"it ended with status {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = gpu.parser(__doc__)
    parser.add_argument("--model", default="0.8B", choices=models.NAMES)
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--copy-gib", type=float, default=4.0, help="size of the array that is copied")
    parser.add_argument("--peer-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    rows = options.questions * options.rollouts
    shape = (options.model, options.questions, options.rollouts, options.prompt, options.new)
    case = Case(CASE, *shape, floor=GOAL, goal=GOAL, slots=rows)
    if options.peer_only:
        print(json.dumps(measure_peer(case, options.any_device)))
        return
    peer, facts = _peer_apart(sys.argv[1:]), gpu.facts(CASE, options)
    if facts is None:
        return
    bandwidth = copy_bandwidth(int(options.copy_gib * 2**30))
    result = measure(case, options.repeats)
    result |= {
        "copy_gb_per_second": bandwidth / 1e9,
        "roofline_share": result["gb_per_second"] * 1e9 / bandwidth,
        "roofline_goal": GOAL,
        "peer": peer,
        "ratio": result["tokens_per_second"] / peer["tokens_per_second"] if peer["measured"] else None,
        "ratio_goal": PEER_GOAL,
    }
    print(json.dumps(facts | {"measured": True} | result))


if __name__ == "__main__":
    main()
