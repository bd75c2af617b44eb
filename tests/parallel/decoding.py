"""The program of the tests of a decoding mesh, in a separate process: the sampler on eight devices and on one.

    python -m tests.parallel.decoding OUT.json

The parameters are sharded over a training mesh; every decoding mesh must give the tokens of one device. Writes {mesh:
{"tokens": share of equal tokens, "logprobs": largest error, "weights": bytes of the decoding weights on a device,
"in_a_step": the collectives of a decoding step, "largest": most elements that decoding a chunk exchanges at once}} to
OUT.json.
"""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import jax

TRAINING = (2, 4, 1)
DECODING = ((2, 4, 1), (8, 1, 1), (2, 1, 4))


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    Path(sys.argv[1]).write_text(json.dumps(compare()))


def compare() -> dict[str, Any]:
    import numpy as np

    from tests import tiny_model
    from zppo_jax import parallel
    from zppo_jax.models.qwen3_5 import vlm

    alone = sampled(tiny_model.engine(), tiny_model.model().params)
    mesh = parallel.make_mesh(*TRAINING)
    host = jax.tree.map(np.asarray, tiny_model.model().params)
    params = parallel.place(mesh, host, vlm.logical_axes(tiny_model.model().config))
    with parallel.use(mesh):
        return {str(shape): on_mesh(mesh, shape, params, alone) for shape in DECODING}


def on_mesh(mesh: Any, shape: tuple[int, int, int], params: Any, alone: list[Any]) -> dict[str, Any]:
    import dataclasses

    import numpy as np

    from tests import tiny_model
    from zppo_jax import parallel
    from zppo_jax.rollout.kept import Kept

    compiler = tiny_model.FastCompiler(num_threads=1, mesh=mesh)
    decoding = parallel.reshaped(mesh, *shape)
    assert (decoding is mesh) == (shape == TRAINING)
    engine = dataclasses.replace(tiny_model.engine(), compiler=compiler, mesh=decoding, kept=Kept())
    found = sampled(engine, params)
    program: Any = engine.compile_decode(params, engine.shapes.num_keys, False)
    weights = jax.tree.leaves(engine.get_weights(params))
    return {
        "tokens": float(np.mean([np.array_equal(a[0], b[0]) for a, b in zip(alone, found, strict=True)])),
        "logprobs": max(float(np.abs(a[1] - b[1]).max()) for a, b in zip(alone, found, strict=True)),
        "weights": sum(leaf.addressable_data(0).nbytes for leaf in weights),
    } | collectives(program._future.result().as_text())


def sampled(engine: Any, params: Any) -> list[Any]:
    """Tokens and log-probabilities of two rollouts of each prompt, one of them with an image."""
    from tests import tiny_model
    from zppo_jax.keys import RandomStream
    from zppo_jax.rollout.requests import Request
    from zppo_jax.rollout.sample import sample

    requests = [
        Request(one.prompt.uid, one.features, 3, draw=RandomStream(5, 1, "student"), vision_key=one.prompt.uid)
        for one in tiny_model.items()
    ]
    return [(one.token_ids_T, one.logprobs_T) for group in sample(engine, params, requests) for one in group]


def collectives(text: str) -> dict[str, Any]:
    """Operations between devices: their kinds within the loop of decoding, their largest result anywhere."""
    kinds = r"(?:all-reduce|all-gather|collective-permute|all-to-all|reduce-scatter)(?:-start)?"
    bodies = [text[text.index(f"%{name} (") :].split("\n}")[0] for name in set(re.findall(r"body=%?([\w.\-]+)", text))]
    sizes = re.findall(rf"\[([\d,]*)\][^\[]* {kinds}\(", text)
    return {
        "in_a_step": sorted({match for body in bodies for match in re.findall(rf" ({kinds})\(", body)}),
        "largest": max(math.prod(int(size) for size in dims.split(",") if size) for dims in sizes),
    }


if __name__ == "__main__":
    main()
