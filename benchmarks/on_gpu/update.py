"""The update of the 0.8B model in bfloat16 on packed rows of 4,096 and of 8,192 tokens: utilisation and memory.

    python -m benchmarks.on_gpu.update [--small] [--groups=4] [--repeats=3]

A line for each length: seconds of `Learner.update` (the gradient of four rows one after the other, and AdamW with the
paper's bfloat16 state), tokens per second of prompts and responses, each counted once, and `utilisation`: model FLOPs
(zppo_jax/models/qwen3_5/flops.py, with the keys that a token sees in its row) over these seconds and the measured speed
of a product of 8192 x 8192 matrices. The goal is 0.4. `compiled_gib` is the compiler's number for the gradient.
"""

from __future__ import annotations

from typing import Any

from benchmarks import models, update_ours
from benchmarks.on_gpu import measuring
from benchmarks.update_cases import Case
from zppo_jax import compilation
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import flops

GOAL = 0.4
PROMPT = NEW = 512
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
    params = models.random_params(config)
    with compilation.compiler() as compiler:
        settings = update_ours.settings(case, **_BFLOAT16)
        _, learner = update_ours.make_parts(case, settings, qwen3_5.Model(config, params), compiler)
        groups, held = update_ours.recorded_groups(case, config), {"state": learner.init(params)}
        del params

        def run() -> Any:
            held["state"], _ = update_ours.updated(learner, settings, held["state"], groups, step=1)
            return held["state"]

        seconds = measuring.seconds_of(run, repeats)
        needs = compiler.program("gradient", lambda: None).compiled.memory_analysis()
    work = flops.of_training(config, round(2 * keys_seen(case))) * num_tokens(case)
    return {
        "row_tokens": learner.shapes.num_tokens,
        "update_seconds": seconds,
        "tokens_per_second": num_tokens(case) / seconds,
        "tflops": work / seconds / 1e12,
        "compiled_gib": (needs.temp_size_in_bytes + needs.argument_size_in_bytes) / 2**30 if needs else None,
        "peak_gib": measuring.peak_gib(),
    }


def case_of(small: bool, length: int, groups: int) -> Case:
    """Groups that fill a row of `length` tokens each; with `small`, rows of 128 of a model that a CPU trains."""
    if small:
        return Case("update", "update", "0.1M", "", GOAL, GOAL, 128, 1, prompts=1, rollouts=3, prompt=32, new=32)
    shape = {"prompts": groups, "rollouts": (length - PROMPT) // NEW, "prompt": PROMPT, "new": NEW}
    return Case("update", "update", "0.8B", "", GOAL, GOAL, row_tokens=length, rows=1, **shape)


def main(arguments: list[str] | None = None) -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    if not measuring.has_device(options.small):
        return
    peak = measuring.product_tflops(64 if options.small else 8192)
    for length in (128,) if options.small else (4096, 8192):
        result = measure(case_of(options.small, length, options.groups), 1 if options.small else options.repeats)
        result |= {"measured_peak_tflops": peak, "utilisation": result["tflops"] / peak, "goal": GOAL}
        measuring.emit("update", options.small, **result)


if __name__ == "__main__":
    main()
