"""Log-probabilities over the vocabulary of 248,320 in bfloat16 at the width of 0.8B: the compiler's memory, and time.

    python -m benchmarks.on_gpu.logprobs [--small] [--tokens=4096]

A line for each way (benchmarks/logprobs.py): `plain` keeps all logits, `chunks` is the trainer's. `value` is the
log-probabilities alone, `gradients` adds those of the hidden states and the head. `temporary_gib` is beside arguments
and results.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import logprobs
from benchmarks.on_gpu import measuring


def measure(side: str, options: argparse.Namespace, repeats: int) -> dict[str, dict[str, float]]:
    """{"value" and "gradients": temporary memory in GiB, and milliseconds}."""
    hidden, head, *others = logprobs.draw(options)
    arguments = (hidden.astype(jnp.bfloat16), head.astype(jnp.bfloat16), *others)
    function = logprobs.sides(options.chunk, options.vocabulary)[side]
    found = {}
    for name, program in logprobs.compiled(function, arguments).items():
        seconds = measuring.seconds_of(lambda program=program: program(*arguments), repeats)
        temporary = program.memory_analysis().temp_size_in_bytes / 2**30
        found[name] = {"temporary_gib": temporary, "milliseconds": 1e3 * seconds}
    return {"value": found["forward"], "gradients": found["gradients"]}


def main(arguments: list[str] | None = None) -> None:
    parser = measuring.parser(__doc__)
    for name, default in {"tokens": 4096, "size": 1024, "vocabulary": 248_320, "chunk": 4224}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(arguments)
    if not measuring.has_device(options.small):
        return
    if options.small:
        options.tokens, options.size, options.vocabulary, options.chunk = 32, 16, 512, 128
    for side in ("plain", "chunks"):
        try:
            found: dict[str, Any] = measure(side, options, 1 if options.small else 5)
        except jax.errors.JaxRuntimeError as error:  # the plain way may not fit
            found = {"measured": False, "why": " ".join(str(error).split())[:200]}
        measuring.emit("log-probabilities", options.small, side=side, tokens=options.tokens, **found)


if __name__ == "__main__":
    main()
