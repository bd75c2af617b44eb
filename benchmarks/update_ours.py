"""zppo_jax's side of a comparison of updates and of whole steps; benchmarks.update and benchmarks.step start it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import update_cases, worker
from benchmarks.rollout_ours import text_features
from benchmarks.update_cases import CASES, CHECKED_UPDATES, Case

ANSWER = "1"
"""The gold answer of every question; see `models.processor`."""


def settings(case: Case, **others: Any) -> Any:
    """The configuration of a run whose steps are the case's: plain GRPO on text; `others` are sections with values."""
    from configs import tiny
    from zppo_jax.config import from_config_dict

    tree = tiny.get_config("grpo")
    tree.rollout.questions_per_step, tree.rollout.group_size = case.prompts, case.rollouts
    tree.rollout.slots, tree.rollout.max_new_tokens = case.prompts * case.rollouts, case.new
    tree.rollout.chunk = 16
    tree.prompt.buckets = (case.prompt,)
    tree.reward.region = "anywhere"
    tree.replay.fraction = tree.zppo.augmentation_fraction = 0.0
    tree.update.num_minibatches = 1
    tree.update.row_tokens, tree.update.rows_per_microbatch = case.row_tokens, case.rows
    tree.update.clip_low, tree.update.clip_high = update_cases.CLIP_LOW, update_cases.CLIP_HIGH
    tree.optimizer.learning_rate, tree.optimizer.weight_decay = update_cases.LEARNING_RATE, 0.0
    tree.optimizer.b1, tree.optimizer.b2, tree.optimizer.eps = update_cases.B1, update_cases.B2, update_cases.EPS
    tree.optimizer.grad_clip = update_cases.GRAD_CLIP
    tree.optimizer.freeze = ("vision/**",)  # the peer has no vision tower
    for section, values in others.items():
        for key, value in values.items():
            getattr(tree, section)[key] = value
    return from_config_dict(tree)


def make_parts(case: Case, config: Any, model: Any, compiler: Any) -> tuple[Any, Any]:
    """Makes (engine, learner) as the trainer does, without stop tokens and banned ids: the peer samples any token."""
    from zppo_jax import setup
    from zppo_jax.rollout.shapes import Shapes

    shape = dataclasses.replace(model.config, stop_token_ids=())
    shapes = Shapes((case.prompt,), shape.vision.spatial_merge_size**2, case.new)
    banned_V = np.zeros(shape.text.vocab_size, bool)
    mesh = setup.decoding_mesh(compiler, config.rollout.mesh, "rollout.mesh", model.config)
    engine = setup.engine_of(config, shape, banned_V, compiler, shapes, mesh)
    return engine, setup.learner_of(config, shape, engine, compiler)


def items(case: Case, config: Any) -> list[Any]:
    """The prompts with their questions, whose answers the scorer compares."""
    from zppo_jax.data.processing import EncodedPrompt
    from zppo_jax.types import Prompt, Question

    result = []
    for number, ids_S in enumerate(case.token_ids(config.text.vocab_size)):
        question = Question(f"question {number}", "", (), ANSWER, "integer")
        result.append(EncodedPrompt(Prompt(question.id, "plain", question, ""), text_features(config, ids_S)))
    return result


def recorded_groups(case: Case, config: Any) -> list[Any]:
    """The rollouts that all sides use."""
    from zppo_jax.types import Group, Rollout

    recorded = case.recorded(config.text.vocab_size)
    groups = []
    for number, item in enumerate(items(case, config)):
        rollouts = zip(
            recorded.responses_PGT[number].astype(np.int32),
            recorded.old_logprobs_PGT[number],
            recorded.rewards_PG[number] > 0,
            strict=True,
        )
        made = tuple(Rollout(ids, logprobs, "length", "", bool(right), None, "ok") for ids, logprobs, right in rollouts)
        groups.append(Group(item.prompt, item.features, made))
    return groups


def updated(learner: Any, config: Any, state: Any, groups: Sequence[Any], step: int) -> tuple[Any, dict[str, float]]:
    """The state after an update as the trainer makes it, and the update's metrics."""
    from zppo_jax.actors.cohort import gather_cohort
    from zppo_jax.parallel import Hosts
    from zppo_jax.update.credit import GroupRelative

    cohort, credit = gather_cohort(groups, Hosts(), "the groups"), GroupRelative.of(config)
    state, done = learner.update(state, cohort, credit, seed=0, step=step)
    return state, done.metrics


class Trainer:
    """The student's state and a step on it: the trainer's loop without its records."""

    def __init__(self, case: Case, checkpoint: str, mesh: Any = None) -> None:
        from zppo_jax import compilation
        from zppo_jax.actors.actor import Actor
        from zppo_jax.models import qwen3_5
        from zppo_jax.processor import Processor
        from zppo_jax.rewards import ScoringPool
        from zppo_jax.rewards.scorer import Scorer

        self.case, self.config = case, settings(case)
        self.load = lambda: qwen3_5.load(checkpoint, mesh=mesh)
        model = self.load()
        self.engine, self.learner = make_parts(case, self.config, model, compilation.Compiler(mesh=mesh))
        self.state = self.learner.init(model.params)
        scorer = Scorer(ScoringPool(1, self.config.reward.timeout_seconds), self.config.reward.region)
        self.actor = Actor(self.engine, Processor.from_directory(checkpoint), scorer)
        self.items = items(case, model.config)
        self.groups = recorded_groups(case, model.config)
        self.num_steps = 0

    def update(self, groups: Sequence[Any]) -> dict[str, float]:
        """Makes an update as the trainer does."""
        self.state, metrics = updated(self.learner, self.config, self.state, groups, self.num_steps)
        return metrics

    def step(self) -> None:
        """Makes a step: rollouts, rewards, update."""
        import jax

        from zppo_jax.keys import RandomStream
        from zppo_jax.rollout.filters import Sampling

        self.num_steps += 1
        draw = RandomStream(0, self.num_steps, "student")
        groups = self.actor.answer(self.state["params"], self.items, self.case.rollouts, Sampling(1.0), draw)
        tokens = sum(len(rollout.token_ids_T) for group in groups for rollout in group.rollouts)
        if tokens != self.case.tokens:
            raise RuntimeError(f"{self.case.name}: {tokens} tokens instead of {self.case.tokens}")
        if not all(0 < group.outcome().accuracy < 1 for group in groups):
            raise RuntimeError(f"{self.case.name}: step {self.num_steps} has a group without a gradient")
        self.engine.kept.release()
        self.update(groups)
        jax.block_until_ready(self.state)

    def update_recorded(self) -> None:
        import jax

        self.update(self.groups)
        jax.block_until_ready(self.state)

    def check(self) -> list[float]:
        """Loss, norm of the gradient and share of clipped tokens of each update on the recorded rollouts, from the
        checkpoint; restores the state afterwards."""
        kept, result = self.state, []
        self.state = self.learner.init(self.load().params)
        for _ in range(CHECKED_UPDATES):
            metrics = self.update(self.groups)
            result += [metrics["loss"], metrics["grad_norm"], metrics["clip_fraction"]]
        self.state = kept
        return result


def prepare(case: Case, checkpoint: str) -> tuple[worker.Run, worker.Run, dict[str, Any]]:
    """Prepares our side on the default device, without a mesh."""
    import jax

    from zppo_jax import compilation

    compilation.keep_memory()
    trainer = Trainer(case, checkpoint)
    run = trainer.step if case.kind == "step" else trainer.update_recorded
    parameters = sum(leaf.size for leaf in jax.tree.leaves(trainer.state["params"]["text"]))
    extra = {"parameters": parameters, "rows": dataclasses.asdict(trainer.learner.shapes)}
    check = (lambda: [case.tokens]) if case.peer == "tunix" else trainer.check
    return run, check, {"versions": {"jax": jax.__version__}, "extra": extra}


if __name__ == "__main__":
    worker.serve(CASES, prepare)
