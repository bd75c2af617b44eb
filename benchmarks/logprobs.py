"""Log-probabilities over a large vocabulary: the plain way, logits kept, and chunks of the head, in turns.

    python -m benchmarks.logprobs [--tokens=512] [--size=256] [--vocabulary=248320] [--chunk=4224] [--core=0]

One JSON line per side: CPU seconds, median and all, of the value alone and with both gradients, and temporary memory of
these two programs. One process on one core; float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

from benchmarks import worker


def sides(chunk: int, num_rows: int) -> dict[str, Callable[..., Any]]:
    """Log-probabilities of (hidden, head, targets, banned)."""
    import jax
    import jax.numpy as jnp

    from zppo_jax.ops.logprobs import target_logprobs
    from zppo_jax.ops.vocabulary import scaled_logits

    def plain(hidden: Any, head: Any, target: Any, banned: Any) -> Any:
        logprobs = jax.nn.log_softmax(scaled_logits(hidden @ head.T, 1.0, banned))
        return jnp.take_along_axis(logprobs, target[..., None], axis=-1)[..., 0]

    def ours(rows: int) -> Callable[..., Any]:
        return lambda hidden, head, target, banned: target_logprobs(hidden, head, target, 1.0, banned, rows)

    return {"plain": plain, "kept": ours(num_rows), "chunks": ours(chunk)}


def draw(options: argparse.Namespace) -> tuple[Any, ...]:
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (options.tokens, options.size))
    head = 0.03 * jax.random.normal(keys[1], (options.vocabulary, options.size))
    target = jax.random.randint(keys[2], (options.tokens,), 0, options.vocabulary)
    return hidden, head, target, jnp.zeros(options.vocabulary, bool)


def compiled(function: Callable[..., Any], arguments: tuple[Any, ...]) -> dict[str, Any]:
    """The programs of the value alone, and with the gradients of the hidden states and the head."""
    import jax
    import jax.numpy as jnp

    def total(*arguments: Any) -> Any:
        return jnp.sum(function(*arguments))

    made = {"forward": total, "gradients": jax.value_and_grad(total, argnums=(0, 1))}
    return {name: jax.jit(run).lower(*arguments).compile() for name, run in made.items()}


def measure(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    import jax

    arguments = draw(options)
    programs = {
        (side, name): program
        for side, function in sides(options.chunk, options.vocabulary).items()
        for name, program in compiled(function, arguments).items()
    }
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in programs}
    for turn in range(options.rounds + 1):
        for key, program in programs.items():
            _, taken = worker.timed(lambda program=program: jax.block_until_ready(program(*arguments)))
            seconds[key] += [round(taken["cpu"], 3)] if turn else []  # the first turn faults its pages in
    result: dict[str, dict[str, Any]] = {}
    for (side, name), program in programs.items():
        gib = program.memory_analysis().temp_size_in_bytes / 2**30
        row = {"cpu_s": statistics.median(seconds[side, name]), "all": seconds[side, name], "temporary_gib": gib}
        result.setdefault(side, {})[name] = row
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"tokens": 512, "size": 256, "vocabulary": 248_320, "chunk": 4224, "rounds": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--core", type=int, default=0)
    options = parser.parse_args()
    worker.pin([options.core])
    from zppo_jax import compilation

    compilation.keep_memory()
    for side, rows in measure(options).items():
        print(json.dumps({"side": side, **rows}), flush=True)


if __name__ == "__main__":
    main()
