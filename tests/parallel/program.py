"""The program of the tests of sharding, in separate processes: the model on a mesh against the model on one device.

    python -m tests.parallel.program [--collectives] DEVICES DATA FSDP TENSOR OUT.json ONE.npz
        [PROCESS NUM_PROCESSES PORT]

DEVICES are those of this process. ONE.npz holds what one device computes; it is made if it is not there, because
compiling takes most of the time. Writes {"logits": largest error, ...} to OUT.json (process 0 only), with
--collectives also the exchanges between devices while they decode.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax

NUM_ROWS, LENGTH, NUM_NEW = 8, 48, 8


def main() -> None:
    arguments = [argument for argument in sys.argv[1:] if argument != "--collectives"]
    devices, data, fsdp, tensor = map(int, arguments[:4])
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    if len(arguments) > 6:
        process, num_processes, port = map(int, arguments[6:])
        jax.distributed.initialize(f"localhost:{port}", num_processes, process)
    result = compare(data, fsdp, tensor, Path(arguments[5]), "--collectives" in sys.argv)
    if jax.process_index() == 0:
        with open(arguments[4], "w", encoding="utf-8") as file:
            json.dump(result, file)


def compare(data: int, fsdp: int, tensor: int, one: Path, collectives: bool) -> dict[str, Any]:
    import numpy as np

    from tests.models import tiny
    from tests.models.tiny import image
    from zppo_jax import parallel
    from zppo_jax.models import qwen3_5
    from zppo_jax.models.qwen3_5 import config as configs
    from zppo_jax.models.qwen3_5 import inputs, vlm

    # One layer of each kind: more of them are the same program again, and compiling takes most of the time.
    layers = {"text__num_hidden_layers": 2, "text__full_attention_interval": 2}
    config = configs.from_dict(tiny.config_dict(tie_word_embeddings=False, **layers))
    model = qwen3_5.Model(config, tiny.random_params(config, seed=1))
    host = jax.tree.map(np.asarray, model.params)
    rows = [[3, image(4, 6)], [], [1, image(2, 4)], [5], [image(6, 4)], [], [2, image(4, 4)], [image(2, 2)]]
    batch, _ = inputs.from_hf(model.config, **tiny.batch(rows, LENGTH, [0, 7, 1, 0, 0, 20, 3, 0]))
    mesh = parallel.make_mesh(data, fsdp, tensor)
    params = parallel.place(mesh, host, vlm.logical_axes(model.config))
    placed = parallel.place(mesh, batch, {name: inputs.AXES[name] for name in batch})
    with parallel.use(mesh):
        actual = outputs(model.config, params, placed)
    if jax.process_index() != 0:
        return {}
    if not one.exists():
        np.savez(one, *jax.tree.leaves(outputs(model.config, host, batch)))
    expected = jax.tree.unflatten(jax.tree.structure(actual), np.load(one).values())
    return errors(expected, actual) | {
        "undivided": sorted(parallel.undivided(mesh, host, vlm.logical_axes(model.config))),
        "cut": sorted({str(leaf.sharding.spec) for leaf in jax.tree.leaves(params)}),
        "largest_share": max(share(leaf) for leaf in jax.tree.leaves(params) if leaf.size >= 4096),
        "collectives_of_a_step": collectives_of_a_step(model.config, params, mesh) if collectives else None,
    }


def collectives_of_a_step(config: Any, params: Any, mesh: Any) -> dict[str, int]:
    """The exchanges between devices in every step of the decoding loop: operation -> most elements of its result."""
    import math
    import re

    import numpy as np

    from tests.models.tiny import FAST_COMPILE
    from zppo_jax import parallel
    from zppo_jax.models.qwen3_5 import decode_weights
    from zppo_jax.rollout import slots, state

    with parallel.use(mesh):
        shapes = jax.eval_shape(lambda: state.empty(config, NUM_ROWS, LENGTH + NUM_NEW, ("float32", "float32")))
        shapes = parallel.placed_shapes(shapes, shapes.axes(config))
        nobody_B, no_id, nothing_V = np.zeros(NUM_ROWS, bool), np.asarray([-1], np.int32), np.zeros(512, bool)
        rest = (np.int32(NUM_NEW), nobody_B, no_id, nothing_V)
        weights = decode_weights.prepare(params["text"], config.text, NUM_ROWS)
        lowered = slots.decode.lower(weights, config, NUM_NEW, False, shapes, *rest)
    options: Any = FAST_COMPILE
    text = lowered.compile(options).as_text() or ""
    bodies = [text[text.index(f"%{name} (") :].split("\n}")[0] for name in set(re.findall(r"body=%?([\w.\-]+)", text))]
    lines = [line for body in bodies for line in body.splitlines()]
    found: dict[str, int] = {}
    for line in lines:
        if match := re.search(r" (all-reduce|all-gather|collective-permute|all-to-all|reduce-scatter)\(", line):
            sizes = [
                math.prod(map(int, dims.split(","))) for dims in re.findall(r"\[([\d,]+)\]", line[: match.start()])
            ]
            found[match[1]] = max(found.get(match[1], 0), *sizes)
    return found


def share(leaf: jax.Array) -> float:
    """The part of an array that one device holds."""
    return leaf.addressable_data(0).size / leaf.size


def outputs(config: Any, params: Any, batch: Any) -> dict[str, Any]:
    """Logits, gradients of the mean log-probability, and sampled tokens, gathered on every process.

    The objective is the trainer's, not a sum of logits with random signs: the gradient of that at the vision tower is
    the small rest of large terms, where float32 itself (each side against float64) is wrong by up to 1e-5.
    """
    import jax.numpy as jnp
    import numpy as np

    from tests.models.tiny import FAST_COMPILE
    from zppo_jax.models.qwen3_5 import decode_weights, text, vlm
    from zppo_jax.ops.logprobs import target_logprobs
    from zppo_jax.rollout import filters, slots, state

    def objective(params, batch):
        hidden_BTD, _ = vlm.prefill(params, config, batch)
        head_VD, targets_BT, nothing_V = text.head(params["text"]), batch["tokens_BT"][:, 1:], jnp.zeros(512, bool)
        logprobs_BT: jax.Array = target_logprobs(hidden_BTD[:, :-1], head_VD, targets_BT, 1.0, nothing_V)
        shown_BT = batch["mask_BT"][:, :-1]
        return jnp.sum(jnp.where(shown_BT, logprobs_BT, 0.0)) / jnp.sum(shown_BT)

    logits = jax.jit(lambda params, batch: vlm.logits(params, config, batch), compiler_options=FAST_COMPILE)
    gradients = jax.jit(jax.grad(objective), compiler_options=FAST_COMPILE)
    features = {"features_IMD": slots.encode(params, config, batch["patches_ISC"], batch["grid_IS5"])}
    prompt = {name: (batch | features)[name] for name in slots.PREFILL_INPUTS}
    empty = state.empty(config, NUM_ROWS, LENGTH + NUM_NEW, ("float32", "float32"))
    rows = state.NewRows(
        prompt_B=np.arange(NUM_ROWS, dtype=np.int32),
        token_B=np.arange(NUM_ROWS, dtype=np.int32) + 20,
        position_B=np.full(NUM_ROWS, LENGTH, np.int32),
        limit_B=np.full(NUM_ROWS, NUM_NEW, np.int32),
        key_B2=jax.random.key_data(jax.random.split(jax.random.key(0), NUM_ROWS)),
        sampling=filters.settings([filters.Sampling()] * NUM_ROWS),
    )
    filled = slots.fill(empty, config, slots.prefill(params, config, prompt), rows)
    nobody_B, no_id, nothing_V = np.zeros(NUM_ROWS, bool), np.asarray([-1], np.int32), np.zeros(512, bool)
    rest = (np.int32(NUM_NEW), nobody_B, no_id, nothing_V)
    weights = decode_weights.prepare(params["text"], config.text, NUM_ROWS)
    _, sampled = slots.decode(weights, config, NUM_NEW, False, filled, *rest)
    return gathered({"logits": logits(params, batch), "gradients": gradients(params, batch), "sampled": vars(sampled)})


def gathered(tree: Any) -> Any:
    import numpy as np
    from jax.experimental import multihost_utils

    def one(x: Any) -> np.ndarray:
        whole = getattr(x, "is_fully_addressable", True)
        return np.asarray(x if whole else multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(one, tree)


def errors(expected: Any, actual: Any) -> dict[str, Any]:
    import numpy as np

    def relative(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a - b).max() / (np.abs(a).max() or 1.0))

    sampled = (expected["sampled"], actual["sampled"])
    return {
        "logits": relative(expected["logits"], actual["logits"]),
        "gradients": max(jax.tree.leaves(jax.tree.map(relative, expected["gradients"], actual["gradients"]))),
        "equal_tokens": float(np.mean(sampled[0]["tokens_BK"] == sampled[1]["tokens_BK"])),
        "logprobs": float(np.abs(sampled[0]["logprobs_BK"] - sampled[1]["logprobs_BK"]).max()),
    }


if __name__ == "__main__":
    main()
