"""The host side of the update: from the groups of a step to I optimiser steps and one row of metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax

from zppo_jax import parallel
from zppo_jax.compilation import Compiler, Program, shapes_of
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.types import Group
from zppo_jax.update import batch, rows, step
from zppo_jax.update.rows import RowShapes
from zppo_jax.update.step import Objective, State


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a rollout batch becomes updates (Table 8 of arXiv:2606.18216)."""

    num_minibatches: int
    inner_epochs: int
    normalisation: str
    scope: str
    eps: float


@dataclasses.dataclass(frozen=True)
class Learner:
    """Updates the student; holds no parameters. `frozen_patterns`: what it leaves alone (see freeze.py)."""

    config: Config
    shapes: RowShapes
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
        """Start compiling gradients, the update and the log-probabilities; `state` may be shapes."""
        self._zero(state["params"])
        self._gradient(state["params"])
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
        updates = []
        for epoch in range(self.settings.inner_epochs):
            for part in batch.split(len(groups), num_minibatches, seed, step, epoch) if epoch else parts:
                state, row = self._step(state, groups, advantages_PG, part)
                updates.append(row)
        metrics |= _mean_rows(jax.device_get(updates))
        metrics["nonzero_group_fraction"] = float(np.mean(np.any(advantages_PG != 0.0, axis=1)))
        return state, advantages_PG, metrics

    def _step(
        self, state: State, groups: Sequence[Group], advantages_PG: np.ndarray, part: np.ndarray
    ) -> tuple[State, dict[str, Any]]:
        """One mini-batch: its gradient, then one update."""
        placed = rows.arrange(groups, batch.with_gradient(part.tolist(), advantages_PG), self.shapes)
        sums = self.gradient(state["params"], groups, advantages_PG, placed)
        num_tokens = np.float32(batch.num_tokens([groups[index] for index in part]))
        return self._update(state)(state, sums, num_tokens)

    def gradient(
        self, params: dict[str, Any], groups: Sequence[Group], advantages_PG: np.ndarray, placed: Sequence[rows.Row]
    ) -> step.Sums:
        """Sums over the tokens of all rows, micro-batch by micro-batch: gradient and metrics."""
        sums = self._zero(params)(params)
        for start in range(0, len(placed), self.shapes.num_rows):
            chosen = placed[start : start + self.shapes.num_rows]
            micro = rows.microbatch(self.config, groups, advantages_PG, chosen, self.shapes)
            sums = self._gradient(params)(sums, params, micro, self.banned_V)
        return sums

    def mismatch(
        self, params: dict[str, Any], groups: Sequence[Group], advantages_PG: np.ndarray, *, seed: int, step: int
    ) -> dict[str, float]:
        """How far the trainer's log-probabilities lie from the sampler's, under the same parameters, on a few groups.

        Mean absolute difference and the k3 estimate of KL(sampler || trainer) in nats a token, before any update.
        """
        shapes = self.compared
        order = np.random.default_rng([seed, step, 0x3A]).permutation(len(groups))
        placed = rows.arrange(groups, order[: shapes.num_rows].tolist(), shapes)[: shapes.num_rows]
        micro = rows.microbatch(self.config, groups, advantages_PG, placed, shapes)
        new_BT = np.asarray(self._logprobs(params)(params, micro, self.banned_V))
        difference = (new_BT - micro["old_logprobs_BT"])[micro["counted_BT"]].astype(np.float64)
        kl = np.mean(np.expm1(difference) - difference)
        return {"mismatch_kl": float(kl), "mismatch_abs": float(np.mean(np.abs(difference)))}

    @property
    def compared(self) -> RowShapes:
        """Of the rows that `mismatch` looks at: one a device; a whole micro-batch could be a fifth of an update."""
        with parallel.use(self.compiler.mesh):
            shares = parallel.num_shards("batch")
        return dataclasses.replace(self.shapes, num_rows=min(shares, self.shapes.num_rows))

    # ---------------------------------------------------------------- programs

    def _no_rows(self, shapes: RowShapes) -> dict[str, Any]:
        return rows.microbatch(self.config, [], np.zeros((0, 0), np.float32), [], shapes)

    def _placed_sums(self, params: dict[str, Any]) -> Any:
        shapes = jax.eval_shape(lambda params: step.zero_sums(params, self.config, self.frozen_patterns), params)
        return parallel.placed_shapes(shapes, step.sums_axes(shapes, self.config, self.frozen_patterns))

    def _zero(self, params: dict[str, Any]) -> Program:
        def lower() -> Any:
            return step.zero_sums.lower(shapes_of(params), self.config, self.frozen_patterns)

        return self.compiler.program("zero gradient", lower)

    def _gradient(self, params: dict[str, Any]) -> Program:
        def lower() -> Any:
            static = (self.config, self.objective, self.frozen_patterns)
            micro, sums = shapes_of(self._no_rows(self.shapes)), self._placed_sums(params)
            return step.add_gradient.lower(sums, shapes_of(params), *static, micro, self.banned_V)

        return self.compiler.program("gradient", lower)

    def _update(self, state: State) -> Program:
        def lower() -> Any:
            static = (self.config, self.transform, self.frozen_patterns)
            sums = self._placed_sums(state["params"])
            return step.update.lower(shapes_of(state), *static, sums, np.float32(0.0))

        return self.compiler.program("update", lower)

    def _logprobs(self, params: dict[str, Any]) -> Program:
        def lower() -> Any:
            micro, temperature = self._no_rows(self.compared), self.objective.temperature
            return step.logprobs.lower(shapes_of(params), self.config, micro, temperature, self.banned_V)

        return self.compiler.program("log-probabilities", lower)


def _mean_rows(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over the updates of a step; tokens are summed."""
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return means | {"tokens": float(np.sum([row["tokens"] for row in rows]))}
