"""The host side of the update: from the groups of a step to I optimiser steps and one row of metrics.

With several hosts each lays its own groups into its own rows of a micro-batch; advantages, mini-batches and numbers of
tokens come from the outcomes of all groups, which all hosts know.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from zppo_jax import parallel
from zppo_jax.compilation import Compiler, Program, shapes_of
from zppo_jax.models.qwen3_5.config import Config
from zppo_jax.parallel import Hosts
from zppo_jax.types import Group, Outcome
from zppo_jax.update import batch, losses, rows, step
from zppo_jax.update.microbatches import Microbatches
from zppo_jax.update.rows import RowShapes
from zppo_jax.update.step import Objective, State


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a rollout batch becomes updates (Table 8 of arXiv:2606.18216); `old_logprobs`: whose the ratio divides by,
    those of the "sampler", or the "trainer"'s before the first update."""

    num_minibatches: int
    inner_epochs: int
    normalisation: str
    scope: str
    eps: float
    old_logprobs: str = "sampler"


class Updated(NamedTuple):
    """What a step's updates gave: the new state, the advantages [P, G] of all groups, means of the metrics, and of each
    update that was skipped because it was not finite, the groups (number of the update: numbers of the groups)."""

    state: State
    advantages_PG: np.ndarray
    metrics: dict[str, float]
    skipped: dict[int, list[int]]


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
    hosts: Hosts = dataclasses.field(default_factory=Hosts)

    @functools.cached_property
    def microbatches(self) -> Microbatches:
        """Makes the arrays of both passes."""
        return Microbatches(self.config, self.compiler.mesh, self.hosts)

    @property
    def num_updates(self) -> int:
        """Of a step."""
        return self.settings.num_minibatches * self.settings.inner_epochs

    def init(self, params: dict[str, Any]) -> State:
        """Parameters and a fresh optimiser state for the trainable ones; ConfigError when a pattern means none."""
        optimizer = step.init_optimizer(params, self.config, self.transform, self.frozen_patterns)
        return {"params": params, "optimizer": optimizer}

    def prepare(self, state: State) -> None:
        """Start compiling gradients, the update and the log-probabilities; `state` may be shapes."""
        self._zero(state["params"])
        self._gradient(state["params"])
        self._update(state)
        for shapes in self._logprobs_shapes:
            self._logprobs(state["params"], shapes)

    def update(
        self,
        state: State,
        groups: Sequence[Group],
        *,
        seed: int,
        step: int,
        everyone: Sequence[Outcome] | None = None,
    ) -> Updated:
        """I mini-batches, K times. `everyone` are the outcomes of all groups of the step, those of other hosts too.

        The old state is donated: it must not be used afterwards. Raises ValueError where two groups have one uid: one
        of them would be learned from twice, the other not at all.
        """
        self._wait_for_all(state)
        outcomes = [group.outcome() for group in groups] if everyone is None else everyone
        places = {outcome.uid: place for place, outcome in enumerate(outcomes)}
        if len(places) < len(outcomes):
            twice = next(outcome.uid for place, outcome in enumerate(outcomes) if places[outcome.uid] != place)
            raise ValueError(f"two groups of the step have the uid {twice!r}: a question may come once, under one id")
        own = {places[group.prompt.uid]: group for group in groups}
        epochs = [self._epoch(outcomes, seed, step, epoch) for epoch in range(self.settings.inner_epochs)]
        parts, advantages_PG = epochs[0]
        looked: dict[str, float] = {}
        if self.settings.old_logprobs == "trainer":
            own, looked = self.with_old_logprobs(state["params"], own, advantages_PG)
        if not looked and not batch.with_gradient(parts[0].tolist(), advantages_PG):
            looked = self.mismatch(state["params"], own, advantages_PG, seed=seed, step=step)
        updates, walked = [], []
        for parts, theirs_PG in epochs:
            for part in parts:
                num_tokens = batch.num_tokens([outcomes[index] for index in part])
                state, row = self._step(state, own, theirs_PG, part, num_tokens)
                updates.append(row)
                walked.append(part.tolist())
        rows_of = jax.device_get(updates)
        metrics = _mean_rows(rows_of) | (looked or _mismatch_of(rows_of))
        num_decided = max(sum(outcome.decided for outcome in outcomes), 1)
        metrics["nonzero_group_fraction"] = float(np.any(advantages_PG != 0.0, axis=1).sum() / num_decided)
        return Updated(state, advantages_PG, metrics, {n: walked[n] for n, row in enumerate(rows_of) if row["skipped"]})

    def _epoch(
        self, outcomes: Sequence[Outcome], seed: int, step: int, epoch: int
    ) -> tuple[Sequence[np.ndarray], np.ndarray]:
        """Its mini-batches and the advantages [P, G] in them: each epoch deals the groups anew, and the statistics of a
        mini-batch (`advantage.scope`) with them."""
        chosen = self.settings
        parts = batch.split(len(outcomes), chosen.num_minibatches, seed, step, epoch)
        return parts, batch.advantages(outcomes, parts, chosen.normalisation, chosen.scope, chosen.eps)

    def _wait_for_all(self, state: State) -> None:
        """For every program, so that a later step compiles nothing; and no host begins what all do together before
        every one of them can: gloo waits for half a minute only."""
        params = state["params"]
        passes = [self._logprobs(params, shapes) for shapes in self._logprobs_shapes]
        for program in (*passes, self._zero(params), self._gradient(params), self._update(state)):
            assert program.compiled
        self.hosts.gather(True, "the update")

    def _step(
        self,
        state: State,
        own: Mapping[int, Group],
        advantages_PG: np.ndarray,
        part: np.ndarray,
        num_tokens: int,
    ) -> tuple[State, dict[str, Any]]:
        """One mini-batch: its gradient, then one update."""
        chosen = [index for index in part.tolist() if index in own]
        placed = rows.arrange(own, batch.with_gradient(chosen, advantages_PG), self.shapes)
        sums = self.gradient(state["params"], own, advantages_PG, placed)
        return self._update(state)(state, sums, np.float32(num_tokens))

    def gradient(
        self, params: dict[str, Any], groups: rows.Groups, advantages_PG: np.ndarray, placed: Sequence[rows.Row]
    ) -> step.Sums:
        """Sums over the tokens of all rows, micro-batch by micro-batch: gradient and metrics.

        `placed` are this host's rows; there are as many micro-batches as the host with the most of them needs.
        """
        sums, size = self._zero(params)(params), self.shapes.num_rows // self.hosts.count
        count = max(self.hosts.gather(-(-len(placed) // size), "the rows of a mini-batch"))
        for number in range(count):
            chosen = placed[number * size : (number + 1) * size]
            micro = self.microbatches.joined(self.microbatches.part(groups, advantages_PG, chosen, self.shapes))
            sums = self._gradient(params)(sums, params, micro, self.banned_V)
        return sums

    def mismatch(
        self, params: dict[str, Any], groups: rows.Groups, advantages_PG: np.ndarray, *, seed: int, step: int
    ) -> dict[str, float]:
        """How far the trainer's log-probabilities lie from the sampler's, under the same parameters, on a few groups.

        Mean absolute difference and the k3 estimate of KL(sampler || trainer) in nats a token, before any update: for
        steps whose first mini-batch has no gradient. The others see it in their first update, at no cost.
        """
        shapes, known = self.compared, groups if isinstance(groups, Mapping) else range(len(groups))
        order = np.random.default_rng([seed, step, 0x3A]).permutation(len(advantages_PG)).tolist()
        chosen = [index for index in order[: shapes.num_rows] if index in known]
        placed = rows.arrange(groups, chosen, shapes)[: shapes.num_rows // self.hosts.count]
        new_BT, micro = self._computed(params, groups, advantages_PG, placed, shapes)
        return self._mismatch_between([new_BT[micro["counted_BT"]]], [micro["old_logprobs_BT"][micro["counted_BT"]]])

    def with_old_logprobs(
        self, params: dict[str, Any], groups: Mapping[int, Group], advantages_PG: np.ndarray
    ) -> tuple[dict[int, Group], dict[str, float]]:
        """The groups with the trainer's log-probabilities in the place of the sampler's where they are learned from,
        and how far the two lie apart ({} where nothing is learned): one forward pass over all rows."""
        shapes, chosen = self.shapes, batch.with_gradient(sorted(groups), advantages_PG)
        placed, size = rows.arrange(groups, chosen, shapes), shapes.num_rows // self.hosts.count
        new: dict[tuple[int, int], np.ndarray] = {}
        for number in range(max(self.hosts.gather(-(-len(placed) // size), "the rows of a step"))):
            part = placed[number * size : (number + 1) * size]
            new_BT, micro = self._computed(params, groups, advantages_PG, part, shapes)
            new |= rows.by_rollout(new_BT, micro["counted_BT"], groups, part)
        old = [groups[index].rollouts[rollout].logprobs_T for index, rollout in new]
        looked = self._mismatch_between(list(new.values()), old)
        found = {index: rows.with_logprobs(group, index, new) for index, group in groups.items()}
        return found, looked if np.any(advantages_PG) else {}

    def _computed(
        self,
        params: dict[str, Any],
        groups: rows.Groups,
        advantages_PG: np.ndarray,
        placed: Sequence[rows.Row],
        shapes: RowShapes,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The trainer's log-probabilities [B, T] of this host's rows, and their micro-batch."""
        micro = self.microbatches.part(groups, advantages_PG, placed, shapes)
        whole_BT = self._logprobs(params, shapes)(params, self.microbatches.joined(micro), self.banned_V)
        return np.asarray(whole_BT)[self.microbatches.places(shapes)], micro

    def _mismatch_between(self, new: Sequence[np.ndarray], old: Sequence[np.ndarray]) -> dict[str, float]:
        """Over the tokens of all hosts."""
        difference = np.concatenate([np.zeros(0), *(a.astype(np.float64) - b for a, b in zip(new, old, strict=True))])
        sums = [np.sum(np.expm1(difference) - difference), np.sum(np.abs(difference)), difference.size]
        kl, distance, count = np.sum(self.hosts.gather([float(each) for each in sums], "the mismatch"), axis=0)
        return {"mismatch_kl": kl / max(count, 1.0), "mismatch_abs": distance / max(count, 1.0)}

    @property
    def compared(self) -> RowShapes:
        """Of the rows that `mismatch` looks at: one a device; a whole micro-batch could be a fifth of an update."""
        with parallel.use(self.compiler.mesh):
            shares = parallel.num_shards("batch")
        return dataclasses.replace(self.shapes, num_rows=min(shares, self.shapes.num_rows))

    # ---------------------------------------------------------------- programs

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
            micro, sums = self.microbatches.abstract(self.shapes), self._placed_sums(params)
            return step.add_gradient.lower(sums, shapes_of(params), *static, micro, self.banned_V)

        return self.compiler.program("gradient", lower)

    def _update(self, state: State) -> Program:
        def lower() -> Any:
            static = (self.config, self.transform, self.frozen_patterns)
            sums = self._placed_sums(state["params"])
            return step.update.lower(shapes_of(state), *static, sums, np.float32(0.0))

        return self.compiler.program("update", lower)

    @property
    def _logprobs_shapes(self) -> tuple[RowShapes, ...]:
        """Of the forward passes that a run may need."""
        return (self.compared, self.shapes) if self.settings.old_logprobs == "trainer" else (self.compared,)

    def _logprobs(self, params: dict[str, Any], shapes: RowShapes) -> Program:
        def lower() -> Any:
            micro, temperature = self.microbatches.abstract(shapes), self.objective.temperature
            return step.logprobs.lower(shapes_of(params), self.config, micro, temperature, self.banned_V)

        return self.compiler.program("old log-probabilities" if shapes is self.shapes else "log-probabilities", lower)


def _mismatch_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """As `Learner.mismatch`, of all tokens of the first update that was made: a skipped one has moved nothing, so its
    parameters are still those of the sampler. NaN where it computed no token, or where none was made."""
    first: Mapping[str, Any] = next((row for row in rows if not row["skipped"]), {"tokens": 0})
    seen = first["tokens"] > 0
    return {
        "mismatch_kl": float(first["kl"]) if seen else math.nan,
        "mismatch_abs": float(first["log_ratio_abs"]) if seen else math.nan,
    }


def _mean_rows(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over the updates of a step that were made, of COMPUTED over those with computed tokens (NaN without any);
    tokens, and updates that were skipped, are summed."""
    made = [row for row in rows if not row["skipped"]]
    computed = [row for row in made if row["tokens"] > 0]

    def mean(name: str) -> float:
        counted = computed if name in losses.COMPUTED else made
        return float(np.mean([row[name] for row in counted])) if counted else math.nan

    means = {name: mean(name) for name in rows[0]}
    return means | {name: float(np.sum([row[name] for row in rows])) for name in ("tokens", "skipped")}
