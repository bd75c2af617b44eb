"""zppo_jax's side of a comparison; benchmarks.model starts it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import worker
from benchmarks.cases import CASES, Case


def program(case: Case, config: Any) -> Callable[[Any, Any], Any]:
    """The function of (params, inputs) that a case times, composed as the trainer composes it."""
    import jax
    import jax.numpy as jnp

    from zppo_jax.models.qwen3_5 import text, vlm
    from zppo_jax.ops.logprobs import target_logprobs

    def mean_logprob(language: Any, vision: Any, inputs: Any) -> jax.Array:
        hidden_BTD, _ = vlm.prefill({"text": language, "vision": vision}, config, inputs)
        targets_BT, banned_V = inputs["tokens_BT"][:, 1:], jnp.zeros(config.text.vocab_size, bool)
        return jnp.mean(target_logprobs(hidden_BTD[:, :-1], text.head(language), targets_BT, 1.0, banned_V))

    def training(params: Any, inputs: Any) -> tuple[jax.Array, Any]:
        return jax.value_and_grad(mean_logprob)(params["text"], params["vision"], inputs)

    def prefill(params: Any, inputs: Any) -> tuple[jax.Array, Any]:
        hidden_BTD, cache = vlm.prefill(params, config, inputs)
        return text.logits(params["text"], hidden_BTD[:, -1:]), cache

    return training if case.kind == "training" else prefill


def prepare(case: Case, checkpoint: str) -> tuple[worker.Run, worker.Run, dict[str, Any]]:
    """Load; compile with the trainer's options."""
    import jax
    import jax.numpy as jnp

    from zppo_jax import compilation
    from zppo_jax.models import qwen3_5
    from zppo_jax.models.qwen3_5 import inputs as model_inputs

    compilation.keep_memory()
    model = qwen3_5.load(checkpoint)
    ids_BT = case.token_ids(model.config.text.vocab_size)
    batch = jax.tree.map(jnp.asarray, model_inputs.from_hf(model.config, input_ids=ids_BT)[0])
    compiler = compilation.Compiler()
    lowered = jax.jit(program(case, model.config)).lower

    def run() -> Any:
        compiled = compiler.program(case.name, lambda: lowered(model.params, batch))
        return jax.block_until_ready(compiled(model.params, batch))

    def check() -> list[float]:
        value, rest = run()
        if case.kind == "training":
            return [float(value), float(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(rest))) ** 0.5]
        return [float(jnp.mean(value)), float(jnp.linalg.norm(value))]

    return run, check, {"versions": {"jax": jax.__version__}}


if __name__ == "__main__":
    worker.serve(CASES, prepare)
