"""The host side of the update: makes I optimiser steps and one row of metrics from a cohort.

The learner packs groups into rows, accumulates gradients and updates. The credit gives the weight of a response, the
objective gives the loss. With several hosts, each packs its own groups into its own rows of a micro-batch; weights,
mini-batches and numbers of tokens come from the outcomes of all groups, which all hosts know.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from zppo_jax import parallel
from zppo_jax.compilation import Compiler, Program, shapes_of
from zppo_jax.keys import RandomStream
from zppo_jax.parallel import Hosts
from zppo_jax.types import Cohort, Group
from zppo_jax.update import batch, programs, rows
from zppo_jax.update.credit import Credit
from zppo_jax.update.microbatches import Microbatches
from zppo_jax.update.programs import Recipe, State
from zppo_jax.update.rows import RowShapes


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The updates of a cohort (Table 8 of arXiv:2606.18216): `num_minibatches` parts, `inner_epochs` times.

    `old_logprobs`: the denominator of the ratio, "sampler" or "trainer" (the trainer's before the first update).
    """

    num_minibatches: int
    inner_epochs: int
    old_logprobs: str = "sampler"

    @property
    def num_updates(self) -> int:
        """Optimiser updates per training step."""
        return self.num_minibatches * self.inner_epochs


class Updated(NamedTuple):
    """The result of the updates of a step: the weights [P, G] of all groups in the first epoch (with statistics of
    mini-batches a later one has others), means of the metrics, and the group indices of each update that was skipped
    because it was not finite (by number of the update)."""

    weights_PG: np.ndarray
    metrics: dict[str, float]
    skipped: dict[int, list[int]]


@dataclasses.dataclass(frozen=True)
class Learner:
    """Updates the student, whose parameters it does not hold. `reference` are the parameters of the objective's
    reference model, on the compiler's mesh."""

    recipe: Recipe
    shapes: RowShapes
    schedule: Schedule
    banned_V: np.ndarray
    compiler: Compiler
    hosts: Hosts = dataclasses.field(default_factory=Hosts)
    reference: dict[str, Any] | None = None

    @functools.cached_property
    def microbatches(self) -> Microbatches:
        """The maker of the arrays of both passes."""
        return Microbatches(self.recipe.model, self.compiler.mesh, self.hosts)

    def init(self, params: dict[str, Any]) -> State:
        """Makes the state: `params` and a fresh optimiser state for the trainable ones. Raises ConfigError for a
        pattern that matches none."""
        return {"params": params, "optimizer": programs.init_optimizer(params, self.recipe)}

    def prepare(self, state: State) -> None:
        """Start compiling gradients, the update and the log-probabilities; `state` may be shapes."""
        self._zero(state["params"])
        self._gradient(state["params"])
        self._update(state)
        for shapes in self._logprobs_shapes:
            self._logprobs(state["params"], shapes)

    def update(self, state: State, cohort: Cohort, credit: Credit, *, seed: int, step: int) -> tuple[State, Updated]:
        """Updates on I mini-batches of the groups of `cohort`, K times.

        The old state is donated: it must not be used afterwards. Raises ValueError if two groups have the same uid: one
        of them would be learned from twice, the other not at all.
        """
        self._wait_for_all(state)
        places = _places(cohort)
        local = {places[group.prompt.uid]: group for group in cohort.groups}
        epochs = [self._epoch(cohort, credit, seed, step, epoch) for epoch in range(self.schedule.inner_epochs)]
        weights_PG = epochs[0].weights_PG
        mismatch: dict[str, float] = {}
        if self.schedule.old_logprobs == "trainer":
            chosen = self._computed(cohort, range(len(cohort.outcomes)), weights_PG)
            local, mismatch = self.with_old_logprobs(state["params"], local, weights_PG, chosen)
        seen = self._computed(cohort, epochs[0].parts[0].tolist(), weights_PG)
        if self.recipe.objective.mismatch and not mismatch and not seen:
            mismatch = self.mismatch(state["params"], local, weights_PG, seed=seed, step=step)
        updates, groups_of_updates = [], []
        for epoch in epochs:
            for part in epoch.parts:
                num_tokens = batch.num_tokens([cohort.outcomes[index] for index in part])
                chosen = self._computed(cohort, part.tolist(), epoch.weights_PG)
                state, row = self._step(state, local, epoch.weights_PG, chosen, num_tokens)
                updates.append(row)
                groups_of_updates.append(part.tolist())
        made = jax.device_get(updates)
        metrics = self._means(made) | (mismatch or self._mismatch_of(made)) | _shares(cohort, weights_PG)
        skipped = {number: groups_of_updates[number] for number, row in enumerate(made) if row["skipped"]}
        return state, Updated(weights_PG, metrics, skipped)

    def _epoch(self, cohort: Cohort, credit: Credit, seed: int, step: int, epoch: int) -> _Epoch:
        """Deals the groups to mini-batches again for an epoch, and recomputes their statistics (`advantage.scope`)."""
        parts = batch.split(len(cohort.outcomes), self.schedule.num_minibatches, seed, step, epoch)
        return _Epoch(parts, credit(cohort.outcomes, parts))

    def _computed(self, cohort: Cohort, groups: Sequence[int], weights_PG: np.ndarray) -> list[int]:
        return batch.computed(groups, weights_PG, cohort.outcomes, self.recipe.objective.weighted_only)

    def _wait_for_all(self, state: State) -> None:
        """Waits until all programs are compiled on all hosts. Otherwise a collective times out (gloo: 30 s) while one
        host still compiles."""
        params = state["params"]
        passes = [self._logprobs(params, shapes) for shapes in self._logprobs_shapes]
        for program in (*passes, self._zero(params), self._gradient(params), self._update(state)):
            assert program.compiled
        self.hosts.gather(True, "the update")

    def _step(
        self, state: State, local: Mapping[int, Group], weights_PG: np.ndarray, chosen: Sequence[int], num_tokens: int
    ) -> tuple[State, dict[str, Any]]:
        """Computes the gradient of the chosen groups of one mini-batch, and makes one update."""
        placed = rows.arrange(local, [index for index in chosen if index in local], self.shapes)
        sums = self.gradient(state["params"], local, weights_PG, placed)
        return self._update(state)(state, sums, np.float32(num_tokens))

    def gradient(
        self, params: dict[str, Any], groups: rows.Groups, weights_PG: np.ndarray, placed: Sequence[rows.Row]
    ) -> programs.Sums:
        """Sums gradient and metrics over the tokens of all rows, micro-batch by micro-batch. `placed` are this host's
        rows; the number of micro-batches is what the host with the most rows needs."""
        sums, size = self._zero(params)(params), self.shapes.num_rows // self.hosts.count
        count = max(self.hosts.gather(-(-len(placed) // size), "the rows of a mini-batch"))
        for number in range(count):
            chosen = placed[number * size : (number + 1) * size]
            micro = self.microbatches.joined(self.microbatches.part(groups, weights_PG, chosen, self.shapes))
            sums = self._gradient(params)(sums, params, self.reference, micro, self.banned_V)
        return sums

    def mismatch(
        self, params: dict[str, Any], groups: rows.Groups, weights_PG: np.ndarray, *, seed: int, step: int
    ) -> dict[str, float]:
        """The mismatch of the trainer's and the sampler's log-probabilities, with the same parameters, on a few groups.

        Mean absolute difference and the k3 estimate of KL(sampler || trainer) in nats per token, before any update. For
        steps whose first mini-batch has no gradient; other steps measure it in their first update, at no cost.
        """
        shapes, known = self.compared, groups if isinstance(groups, Mapping) else range(len(groups))
        order = RandomStream(seed, step, "compared").order(len(weights_PG)).tolist()
        chosen = [index for index in order[: shapes.num_rows] if index in known]
        placed = rows.arrange(groups, chosen, shapes)[: shapes.num_rows // self.hosts.count]
        new_BT, micro = self._logprobs_of(params, groups, weights_PG, placed, shapes)
        return self._mismatch_between([new_BT[micro["counted_BT"]]], [micro["old_logprobs_BT"][micro["counted_BT"]]])

    def with_old_logprobs(
        self, params: dict[str, Any], groups: Mapping[int, Group], weights_PG: np.ndarray, chosen: Sequence[int]
    ) -> tuple[dict[int, Group], dict[str, float]]:
        """Replaces the sampler's log-probabilities by the trainer's in the `chosen` groups, in one forward pass over
        all rows. Returns (the groups, the mismatch of the two: {} if none are chosen)."""
        shapes, size = self.shapes, self.shapes.num_rows // self.hosts.count
        placed = rows.arrange(groups, [index for index in chosen if index in groups], shapes)
        new: dict[tuple[int, int], np.ndarray] = {}
        for number in range(max(self.hosts.gather(-(-len(placed) // size), "the rows of a step"))):
            part = placed[number * size : (number + 1) * size]
            new_BT, micro = self._logprobs_of(params, groups, weights_PG, part, shapes)
            new |= rows.by_rollout(new_BT, micro["counted_BT"], groups, part)
        old = [groups[index].rollouts[rollout].logprobs_T for index, rollout in new]
        mismatch = self._mismatch_between(list(new.values()), old)
        found = {index: rows.with_logprobs(group, index, new) for index, group in groups.items()}
        return found, mismatch if chosen else {}

    def _logprobs_of(
        self,
        params: dict[str, Any],
        groups: rows.Groups,
        weights_PG: np.ndarray,
        placed: Sequence[rows.Row],
        shapes: RowShapes,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Computes the trainer's log-probabilities [B, T] of this host's rows; returns them and the micro-batch."""
        micro = self.microbatches.part(groups, weights_PG, placed, shapes)
        whole_BT = self._logprobs(params, shapes)(params, self.microbatches.joined(micro), self.banned_V)
        return np.asarray(whole_BT)[self.microbatches.places(shapes)], micro

    def _mismatch_between(self, new: Sequence[np.ndarray], old: Sequence[np.ndarray]) -> dict[str, float]:
        """The mismatch over the tokens of all hosts."""
        difference = np.concatenate([np.zeros(0), *(a.astype(np.float64) - b for a, b in zip(new, old, strict=True))])
        sums = [np.sum(np.expm1(difference) - difference), np.sum(np.abs(difference)), difference.size]
        kl, distance, count = np.sum(self.hosts.gather([float(each) for each in sums], "the mismatch"), axis=0)
        return {"mismatch_kl": kl / max(count, 1.0), "mismatch_abs": distance / max(count, 1.0)}

    @property
    def compared(self) -> RowShapes:
        """The shapes of the rows that `mismatch` reads: one row per device, because a full micro-batch would cost a
        fifth of an update."""
        with parallel.use(self.compiler.mesh):
            shares = parallel.num_shards("batch")
        return dataclasses.replace(self.shapes, num_rows=min(shares, self.shapes.num_rows))

    def _mismatch_of(self, updates: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The mismatch over all tokens of the first update that was made: a skipped one has changed nothing, so the
        parameters are still those of the sampler. NaN if it computed no token, or if none was made."""
        first: Mapping[str, Any] = next((row for row in updates if not row["skipped"]), {"tokens": 0})
        seen = first["tokens"] > 0
        return {name: float(first[of]) if seen else math.nan for name, of in self.recipe.objective.mismatch.items()}

    def _means(self, updates: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Means over the updates of a step that were made; for sums over computed tokens, over those that computed any
        (NaN if none). The numbers of tokens and of skipped updates are summed."""
        made = [row for row in updates if not row["skipped"]]
        computed = [row for row in made if row["tokens"] > 0]
        over_computed = {one.name for one in self.recipe.objective.sums if one.over == "computed"}

        def mean(name: str) -> float:
            counted = computed if name in over_computed else made
            return float(np.mean([row[name] for row in counted])) if counted else math.nan

        means = {name: mean(name) for name in updates[0]}
        return means | {name: float(np.sum([row[name] for row in updates])) for name in ("tokens", "skipped")}

    # ---------------------------------------------------------------- programs

    def _placed_sums(self, params: dict[str, Any]) -> Any:
        shapes = jax.eval_shape(lambda params: programs.zero_sums(params, self.recipe), params)
        return parallel.placed_shapes(shapes, programs.sums_axes(shapes, self.recipe))

    def _zero(self, params: dict[str, Any]) -> Program:
        def lower() -> Any:
            return programs.zero_sums.lower(shapes_of(params), self.recipe)

        return self.compiler.program("zero gradient", lower)

    def _gradient(self, params: dict[str, Any]) -> Program:
        def lower() -> Any:
            micro, sums = self.microbatches.abstract(self.shapes), self._placed_sums(params)
            models = shapes_of(params), shapes_of(self.reference)
            return programs.add_gradient.lower(sums, *models, self.recipe, micro, self.banned_V)

        return self.compiler.program("gradient", lower)

    def _update(self, state: State) -> Program:
        def lower() -> Any:
            sums = self._placed_sums(state["params"])
            return programs.update.lower(shapes_of(state), self.recipe, sums, np.float32(0.0))

        return self.compiler.program("update", lower)

    @property
    def _logprobs_shapes(self) -> tuple[RowShapes, ...]:
        """The shapes of the forward passes that a run may need."""
        return (self.compared, self.shapes) if self.schedule.old_logprobs == "trainer" else (self.compared,)

    def _logprobs(self, params: dict[str, Any], shapes: RowShapes) -> Program:
        def lower() -> Any:
            micro, recipe = self.microbatches.abstract(shapes), self.recipe
            return programs.logprobs.lower(shapes_of(params), recipe.model, micro, recipe.temperature, self.banned_V)

        return self.compiler.program("old log-probabilities" if shapes is self.shapes else "log-probabilities", lower)


class _Epoch(NamedTuple):
    """The groups of each mini-batch, and the weights [P, G] of all groups in them."""

    parts: Sequence[np.ndarray]
    weights_PG: np.ndarray


def _places(cohort: Cohort) -> dict[str, int]:
    """The index of each group of all hosts, by its uid."""
    places = {outcome.uid: place for place, outcome in enumerate(cohort.outcomes)}
    if len(places) < len(cohort.outcomes):
        twice = next(outcome.uid for place, outcome in enumerate(cohort.outcomes) if places[outcome.uid] != place)
        raise ValueError(f"two groups of the step have the uid {twice!r}: a question may come once, under one id")
    return places


def _shares(cohort: Cohort, weights_PG: np.ndarray) -> dict[str, float]:
    """The shares of decided groups with a nonzero weight, and of their responses with a positive one."""
    decided = np.asarray([outcome.decided for outcome in cohort.outcomes], bool)
    return {
        "nonzero_group_fraction": float(np.any(weights_PG != 0.0, axis=1).sum() / max(decided.sum(), 1)),
        "positive_fraction": float((weights_PG > 0.0).sum() / max(decided.sum() * weights_PG.shape[1], 1)),
    }
