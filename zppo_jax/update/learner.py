"""The host side of the update: from the groups of a step to I optimiser steps and one row of metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax

from zppo_jax.compilation import Compiler, Program, shapes_of
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.rollout.shapes import Shapes
from zppo_jax.types import Group
from zppo_jax.update import batch, step
from zppo_jax.update.step import Objective, State


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a rollout batch becomes updates (Table 8 of arXiv:2606.18216).

    `max_groups` bounds the groups of one mini-batch over the whole run, so that the compiled shapes never change.
    """

    num_minibatches: int
    inner_epochs: int
    groups_per_microbatch: int
    max_groups: int
    normalisation: str
    scope: str
    eps: float


@dataclasses.dataclass(frozen=True)
class Learner:
    """Updates the student; holds no parameters. `frozen_patterns`: what it leaves alone (see freeze.py)."""

    config: Config
    shapes: Shapes
    settings: Settings
    objective: Objective
    transform: optax.GradientTransformation
    banned_V: np.ndarray
    compiler: Compiler
    frozen_patterns: tuple[str, ...] = ()

    def init(self, params: dict[str, Any]) -> State:
        """Parameters and a fresh optimiser state for the trainable ones; ConfigError when a pattern means none."""
        optimizer = step.init_optimizer(params, self.config, self.transform, self.frozen_patterns)
        return {"params": params, "optimizer": optimizer}

    def prepare(self, state: State) -> None:
        """Start compiling the update and the log-probabilities; `state` may be shapes."""
        self._update(state)
        self._logprobs(state["params"])

    def update(
        self, state: State, groups: Sequence[Group], *, seed: int, step: int
    ) -> tuple[State, np.ndarray, dict[str, float]]:
        """I mini-batches, K times. Returns the new state, the advantages [P, G] and the means of the metrics.

        The old state is donated: it must not be used afterwards.
        """
        num_minibatches = self.settings.num_minibatches
        parts = batch.split(len(groups), num_minibatches, seed, step, 0)
        advantages_PG = batch.advantages(
            groups, parts, self.settings.normalisation, self.settings.scope, self.settings.eps
        )
        metrics = self.mismatch(state["params"], groups, advantages_PG, seed=seed, step=step)
        rows = []
        for epoch in range(self.settings.inner_epochs):
            for part in batch.split(len(groups), num_minibatches, seed, step, epoch) if epoch else parts:
                packed = self._pack([groups[i] for i in part], advantages_PG[part])
                state, row = self._update(state)(state, packed, self.banned_V)
                rows.append(row)
        metrics |= _mean_rows(jax.device_get(rows))
        metrics["nonzero_group_fraction"] = float(np.mean(np.any(advantages_PG != 0.0, axis=1)))
        return state, advantages_PG, metrics

    def mismatch(
        self, params: dict[str, Any], groups: Sequence[Group], advantages_PG: np.ndarray, *, seed: int, step: int
    ) -> dict[str, float]:
        """How far the trainer's log-probabilities lie from the sampler's, under the same parameters, on a few groups.

        Mean absolute difference and the k3 estimate of KL(sampler || trainer) in nats a token, before any update.
        """
        count = min(self.settings.groups_per_microbatch, len(groups))
        chosen = np.random.default_rng([seed, step, 0x3A]).choice(len(groups), count, replace=False)
        micro = batch.microbatch(
            self.config,
            [groups[i] for i in chosen],
            advantages_PG[chosen],
            self.settings.groups_per_microbatch,
            len(self.shapes.buckets) - 1,
            self.shapes,
        )
        new_MGR = np.asarray(self._logprobs(params)(params, micro, self.banned_V))
        difference = (new_MGR - micro["old_logprobs_MGR"])[micro["mask_MGR"]].astype(np.float64)
        kl = np.mean(np.expm1(difference) - difference)
        return {"mismatch_kl": float(kl), "mismatch_abs": float(np.mean(np.abs(difference)))}

    def _pack(self, groups: Sequence[Group], advantages_PG: np.ndarray) -> dict[str, Any]:
        settings = self.settings
        return batch.minibatch(
            self.config, groups, advantages_PG, self.shapes, settings.groups_per_microbatch, settings.max_groups
        )

    def _update(self, state: State) -> Program:
        def lower() -> Any:
            packed = self._pack([], np.zeros((0, self.shapes.group_size), np.float32))
            static = (self.config, self.objective, self.transform, self.frozen_patterns)
            return step.update.lower(shapes_of(state), *static, shapes_of(packed), self.banned_V)

        return self.compiler.program("update", lower)

    def _logprobs(self, params: dict[str, Any]) -> Program:
        def lower() -> Any:
            groups, bucket = self.settings.groups_per_microbatch, len(self.shapes.buckets) - 1
            none = np.zeros((0, self.shapes.group_size), np.float32)
            micro = batch.microbatch(self.config, [], none, groups, bucket, self.shapes)
            temperature = self.objective.temperature
            return step.logprobs.lower(shapes_of(params), self.config, micro, temperature, self.banned_V)

        return self.compiler.program("log-probabilities", lower)


def _mean_rows(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over the updates of a step; tokens are summed."""
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return means | {"tokens": float(np.sum([row["tokens"] for row in rows]))}
