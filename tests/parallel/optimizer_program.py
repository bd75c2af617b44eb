"""The program of the tests of the sharded optimiser: eight fake devices, a tiny model in bfloat16 on a 2 x 2 x 2 mesh.

    python -m tests.parallel.optimizer_program OUT.json state|learner

`state` writes the final state for each rounding, `learner` the state after the compiled update of a run.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from typing import Any

import jax

NUM_UPDATES = 3
ROUNDINGS = ("nearest", "stochastic", "kahan", "master")
FROZEN = ("vision/**", "text/linear/**")
"""The rest has every kind of axis, and with half the arrays compiling takes half the time."""


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    result = {name: of_state(name) for name in ROUNDINGS} if sys.argv[2] == "state" else of_learner()
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(result, file)


def adamw(parameter_rounding: str) -> Any:
    from zppo_jax.update import optimizer

    rate = optimizer.learning_rate("constant", 1e-3, 0, 1)
    return optimizer.adamw(rate, 0.9, 0.999, 1e-8, 0.1, 1.0, "bfloat16", parameter_rounding)


def in_bfloat16(params: Any) -> Any:
    """Casts parameters to bfloat16 as in checkpoints, in NumPy."""
    import jax.numpy as jnp
    import numpy as np

    from zppo_jax.models.qwen3_5.hf.names import KEPT_FLOAT32
    from zppo_jax.models.qwen3_5.parameters import flatten, unflatten

    flat = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    return unflatten({p: x if p in KEPT_FLOAT32 else x.astype(jnp.bfloat16) for p, x in flat.items()})


# ---------------------------------------------------------------- the optimiser alone


def of_state(name: str) -> dict[str, Any]:
    import numpy as np

    from tests.models import tiny
    from zppo_jax import parallel
    from zppo_jax.models.qwen3_5 import vlm

    model = tiny.random_model(tied=False, seed=1)
    host, axes = in_bfloat16(model.params), vlm.logical_axes(model.config)
    gradient, mesh = jax.tree.map(lambda p: 1e-4 * np.asarray(p, np.float32), host), parallel.make_mesh(2, 2, 2)
    with parallel.use(mesh):
        params, along = (parallel.place(mesh, tree, axes) for tree in (host, gradient))
        found, result = walked(params, along, model.config, adamw(name))
    expected, _ = walked(jax.tree.map(jax.numpy.asarray, host), gradient, model.config, adamw(name))
    return result | {"differs_from_one_device": differences(expected, found)}


def walked(params: Any, gradient: Any, config: Any, transform: Any) -> tuple[Any, dict[str, Any]]:
    """Makes a few updates in place; returns the state, the shardings around each, and the program's collectives."""
    from tests import tiny_model
    from tests.models.tiny import SAME_ROUNDING
    from tests.tiny_model import cache_size
    from zppo_jax.update import freeze, programs

    recipe = programs.Recipe(config, tiny_model.OBJECTIVE, transform, 1.0, FROZEN)

    def optimized(state: Any, gradient: Any) -> Any:
        return programs.optimized(state, freeze.split(gradient, FROZEN)[0], recipe)

    update = jax.jit(optimized, donate_argnums=0, compiler_options=SAME_ROUNDING)
    state = {"params": params, "optimizer": programs.init_optimizer(params, recipe)}
    compiled = update.lower(state, gradient).compile()
    memory: Any = compiled.memory_analysis()
    result = {
        "bytes_not_in_place": bytes_of_a_device(state) - memory.alias_size_in_bytes,
        "exchanged": exchanged(compiled.as_text() or ""),
        "elsewhere": [elsewhere(state, transform, FROZEN)],
        "largest_share": largest_share(state),
    }
    for _ in range(NUM_UPDATES):
        state = update(state, gradient)
        result["elsewhere"].append(elsewhere(state, transform, FROZEN))
    return jax.device_get(state), result | {"programs": cache_size(update)}


def elsewhere(state: Any, transform: Any, frozen_patterns: tuple[str, ...] = ()) -> list[str]:
    """The leaves of the optimiser's state not sharded like their parameter, or, without one, not replicated."""
    import optax

    from zppo_jax.update import freeze

    trainable, _ = freeze.split(state["params"], frozen_patterns)

    def placed(leaf: jax.Array, param: jax.Array) -> bool:
        return leaf.sharding.is_equivalent_to(param.sharding, leaf.ndim)

    def everywhere(leaf: jax.Array) -> bool:
        return leaf.sharding.is_fully_replicated and len(leaf.sharding.device_set) == jax.device_count()

    right = optax.tree.map_params(transform, placed, state["optimizer"], trainable, transform_non_params=everywhere)
    return [jax.tree_util.keystr(path) for path, ok in jax.tree_util.tree_leaves_with_path(right) if not ok]


def exchanged(program: str) -> dict[str, int]:
    """The collective operations of a program -> most elements of a result."""
    found: dict[str, int] = {}
    for line in program.splitlines():
        if match := re.search(r" (all-reduce|all-gather|collective-permute|all-to-all|reduce-scatter)\S*\(", line):
            sizes = [
                math.prod(int(n) for n in dims.split(",") if n)
                for dims in re.findall(r"\w\[([\d,]*)\]", line[: match.start()])
            ]
            found[match[1]] = max(found.get(match[1], 0), *sizes)
    return found


def bytes_of_a_device(state: Any) -> int:
    return sum(leaf.addressable_data(0).nbytes for leaf in jax.tree.leaves(state))


def largest_share(state: Any) -> float:
    """The largest part of a large array that one device holds."""
    return max(x.addressable_data(0).size / x.size for x in jax.tree.leaves(state) if x.size >= 4096)


def differences(expected: Any, actual: Any) -> list[str]:
    import numpy as np

    pairs = zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(actual), strict=True)
    return [jax.tree_util.keystr(path) for (path, a), b in pairs if not np.array_equal(a, b)]


# ---------------------------------------------------------------- the update of a run


def of_learner() -> dict[str, Any]:
    """Makes updates on random groups with the learner's program, from a state that the learner has made."""
    import numpy as np

    from tests import tiny_model
    from zppo_jax import parallel
    from zppo_jax.models.qwen3_5 import vlm

    mesh, model = parallel.make_mesh(2, 2, 2), tiny_model.model()
    compiler = tiny_model.FastCompiler(num_threads=1, mesh=mesh)
    transform = adamw("kahan")
    recipe = dataclasses.replace(tiny_model.learner().recipe, transform=transform)
    learner = dataclasses.replace(tiny_model.learner(), recipe=recipe, compiler=compiler)
    with parallel.use(mesh):
        state = learner.init(parallel.place(mesh, in_bfloat16(model.params), vlm.logical_axes(model.config)))
        found = [elsewhere(state, transform)]
        start = np.asarray(state["params"]["text"]["embed"])
        memory = learner._update(state)._future.result().memory_analysis()
        before = bytes_of_a_device(state)
        for number in range(2):
            state, _, metrics, _ = tiny_model.update(learner, state, groups(), seed=0, step=number)
            found.append(elsewhere(state, transform))
    moved = np.mean(np.asarray(state["params"]["text"]["embed"]) != start)
    return {
        "elsewhere": found,
        "bytes_not_in_place": before - memory.alias_size_in_bytes,
        "programs": list(compiler.names),
        "grad_norm": metrics["grad_norm"],
        "moved": float(moved),
    }


def groups() -> list[Any]:
    """Random responses to a few prompts, half of them right."""
    import numpy as np

    from tests import tiny_model
    from zppo_jax.types import Group, Rollout

    rng = np.random.default_rng(0)

    def rollout(right: bool) -> Rollout:
        ids, logprobs = rng.integers(1, 250, 5).astype(np.int32), np.full(5, -6.0, np.float32)
        return Rollout(ids, logprobs, "stop", "", right, None, "ok")

    size = tiny_model.GROUP_SIZE
    return [
        Group(item.prompt, item.features, tuple(rollout(number % 2 == 0) for number in range(size)))
        for item in tiny_model.items()
    ]


if __name__ == "__main__":
    main()
