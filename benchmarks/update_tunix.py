"""tunix's side of a comparison of whole steps: its GRPOLearner, which has no Qwen3.5, on a dense Qwen3 of that size.

    pip install google-tunix==0.1.7 jax==0.10.2 flax==0.12.8    # in a separate environment: --tunix-python

The learner's own loop runs, one step per turn, with tunix's sampler, without records and checkpoints.
"""

# pyright: reportMissingImports=false
# Its libraries are in a separate environment.

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks import update_cases, worker
from benchmarks.turns import Turns
from benchmarks.update_cases import STEPS, Case

SIZES = {
    "1.12M": {"num_layers": 4, "embed_dim": 128, "hidden_dim": 512, "vocab_size": 512},
    "9.47M": {"num_layers": 8, "embed_dim": 256, "hidden_dim": 1024, "vocab_size": 4096},
}
"""The depth, width and vocabulary of our models; without linear attention 1.05M and 8.92M parameters."""

_NEVER = 2**31 - 1
"""An id that is never sampled."""


def make_model(case: Case, mesh: Any) -> Any:
    """Makes a random model in float32."""
    import jax
    from flax import nnx
    from tunix.models.qwen3 import model as qwen3

    size = SIZES[case.model]
    config = qwen3.ModelConfig(
        **size,
        num_heads=4,
        num_kv_heads=2,
        head_dim=size["embed_dim"] // 4,
        rope_theta=1_000_000,
        norm_eps=1e-6,
        use_tied_embedding=True,
    )
    with jax.set_mesh(mesh):
        model = qwen3.Qwen3(config, rngs=nnx.Rngs(0))
        state = nnx.state(model)
        sharding = jax.tree.map(lambda spec: jax.sharding.NamedSharding(mesh, spec), nnx.get_partition_spec(state))
        nnx.update(model, jax.device_put(state, sharding))
    return model


def prompts(case: Case, vocab_size: int) -> list[str]:
    """Texts of `case.prompt` tokens each, made of whole words (see models.processor)."""
    words_PS = case.token_ids(vocab_size) % (vocab_size - 256 - 30)
    return ["".join(f"w{word} \\boxed{{{word % 2}}}" for word in words_S) for words_S in words_PS]


def reward(prompts: list[str], completions: list[str], **others: Any) -> list[float]:
    """Whether the last box holds a 1."""
    del prompts, others
    boxes = (re.findall(r"\\boxed\{(\d)\}", completion) for completion in completions)
    return [float(bool(found) and found[-1] == "1") for found in boxes]


def make_cluster(case: Case, model: Any, tokenizer: Any, mesh: Any) -> Any:
    """Makes trainer and sampler on the same weights."""
    import optax
    from tunix.rl import rl_cluster
    from tunix.rl.rollout import base_rollout

    optimizer = optax.chain(
        optax.clip_by_global_norm(update_cases.GRAD_CLIP),
        optax.adamw(update_cases.LEARNING_RATE, update_cases.B1, update_cases.B2, update_cases.EPS, weight_decay=0.0),
    )
    return rl_cluster.RLCluster(
        actor=model,
        tokenizer=tokenizer,
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(
                (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT), mesh
            ),
            rollout_engine="vanilla",
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optimizer,
                eval_every_n_steps=1_000_000,
                max_steps=1_000_000,
                mini_batch_size=case.prompts,
                train_micro_batch_size=case.prompts,
                pbar_description=None,
            ),
            rollout_config=base_rollout.RolloutConfig(
                max_tokens_to_generate=case.new,
                max_prompt_length=case.prompt,
                kv_cache_size=case.prompt + case.new,
                temperature=1.0,
                top_p=1.0,
                eos_tokens=[_NEVER],
            ),
        ),
    )


def prepare(case: Case, checkpoint: str) -> tuple[worker.Run, worker.Run, dict[str, Any]]:
    """Prepares tunix's side, of which only the number of tokens can be compared."""
    import jax
    import transformers
    from flax import nnx
    from tunix.rl.grpo import grpo_learner

    automatic = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=automatic)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=f"{checkpoint}/tokenizer.json", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    model = make_model(case, mesh)
    cluster = make_cluster(case, model, tokenizer, mesh)
    settings = grpo_learner.GRPOConfig(
        num_generations=case.rollouts, num_iterations=1, beta=0.0, epsilon=update_cases.CLIP_LOW
    )
    learner = grpo_learner.GRPOLearner(rl_cluster=cluster, algo_config=settings, reward_fns=reward)
    made: list[int] = []
    generate = cluster.generate

    def counted(*arguments: Any, **named: Any) -> Any:
        output = generate(*arguments, **named)
        made.append(sum(len(tokens) for tokens in output.tokens))
        return output

    cluster.generate = counted

    def questions() -> Iterator[dict[str, Any]]:
        while True:
            jax.block_until_ready(jax.tree.leaves(nnx.state(cluster.actor_trainer.model)))
            turns.begin()
            yield {"prompts": np.array(prompts(case, SIZES[case.model]["vocab_size"]))}

    turns = Turns(lambda: learner.train(questions()))
    turns.start()

    def run() -> None:
        turns.step()
        if made[-1] != case.tokens:
            raise RuntimeError(f"{case.name}: {made[-1]} tokens instead of {case.tokens}")

    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    versions = {"tunix": importlib.metadata.version("google-tunix"), "tunix's jax": jax.__version__}
    return run, lambda: [case.tokens], {"versions": versions, "extra": {"parameters": parameters}}


if __name__ == "__main__":
    worker.serve(STEPS, prepare)
