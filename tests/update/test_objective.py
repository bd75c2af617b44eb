"""An objective other than the paper's, with a reference model, as a method may plug it into the learner."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_model
from tests.tiny_model import FastCompiler, groups
from zppo_jax.types import Rollout
from zppo_jax.update import rows
from zppo_jax.update.credit import CREDITS
from zppo_jax.update.losses import Sum
from zppo_jax.update.objective import OBJECTIVES, ModelOutput
from zppo_jax.zppo import METHODS


@dataclasses.dataclass(frozen=True)
class Distance:
    """Weighted squared difference of log-probabilities from the reference's, and the number of equal tokens."""

    sums: ClassVar[tuple[Sum, ...]] = (Sum("loss"), Sum("near", "computed"))
    mismatch: ClassVar[Mapping[str, str]] = {}
    needs_reference: ClassVar[bool] = True
    weighted_only: ClassVar[bool] = True

    def __call__(
        self, student: ModelOutput, reference: ModelOutput | None, micro: Mapping[str, Any]
    ) -> dict[str, jax.Array]:
        assert reference is not None
        difference_BT = student.logprobs(micro["target_BT"]) - reference.logprobs(micro["target_BT"])

        def total(values_BT: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(micro["counted_BT"], values_BT, 0.0))

        return {
            "loss": total(micro["weights_BT"] * jnp.where(micro["counted_BT"], difference_BT, 0.0) ** 2),
            "near": total(jnp.abs(difference_BT) < 1.0),
        }


def everything(outcomes: Any, minibatches: Any) -> np.ndarray:
    """Credit of 1 for every response."""
    return np.ones((len(outcomes), tiny_model.GROUP_SIZE), np.float32)


@pytest.fixture(scope="module")
def learner():
    teacher = tiny_model.model(seed=1)
    recipe = dataclasses.replace(tiny_model.learner().recipe, objective=Distance(), reference=teacher.config)
    compiler = FastCompiler(num_threads=1)
    return dataclasses.replace(tiny_model.learner(), recipe=recipe, reference=teacher.params, compiler=compiler)


def distance(params: Any, learner: Any) -> float:
    """Mean squared difference of all tokens, by the trainer's log-probabilities."""
    total, count = 0.0, 0
    for group in groups():
        micro = rows.microbatch(
            tiny_model.model().config, [group], np.zeros((1, 3)), [[rows.Part(0, (0, 1, 2))]], learner.compared
        )
        found = [
            np.asarray(learner._logprobs(params, learner.compared)(one, micro, tiny_model.banned_V()))
            for one in (params, learner.reference)
        ]
        counted_BT = micro["counted_BT"]
        total += float(np.sum(np.square(found[0] - found[1])[counted_BT]))
        count += int(counted_BT.sum())
    return total / count


def test_an_objective_with_a_reference_model_is_learned(learner):
    """The loss equals that of another program, and its updates bring the two models closer."""
    state = tiny_model.fresh_state()
    before = distance(state["params"], learner)
    first = tiny_model.update(learner, state, groups(), seed=0, step=1, credit=everything)
    parts = len(first.skipped) == 0 and first.metrics["loss"]
    assert parts == pytest.approx(before, rel=0.3), "means of two mini-batches, the second after an update"
    assert 0.0 <= first.metrics["near"] <= 1.0 and np.isnan(
        learner._mismatch_of([{"skipped": 0, "tokens": 1}]).get("x", np.nan)
    )
    state = first.state
    for step in range(2, 8):
        state = tiny_model.update(learner, state, groups(), seed=0, step=step, credit=everything).state
    assert distance(state["params"], learner) < 0.9 * before


def test_the_reference_does_not_learn(learner):
    before = jax.tree.map(np.asarray, learner.reference)
    tiny_model.update(learner, tiny_model.fresh_state(), groups(), seed=0, step=1, credit=everything)
    jax.tree.map(np.testing.assert_array_equal, before, learner.reference)


def test_the_sums_are_those_that_are_declared(learner):
    state = tiny_model.fresh_state()
    sums = learner._zero(state["params"])(state["params"])
    assert sums["metrics"].keys() == {"loss", "near", "tokens"}


@dataclasses.dataclass(frozen=True)
class Counting(Distance):
    """A loss that tokens without weight add to, as a distance from the reference does."""

    weighted_only: ClassVar[bool] = False

    def __call__(
        self, student: ModelOutput, reference: ModelOutput | None, micro: Mapping[str, Any]
    ) -> dict[str, jax.Array]:
        del reference
        return dict.fromkeys(("loss", "near"), jnp.sum(jnp.where(micro["counted_BT"], student.temperature, 0.0)))


def test_groups_without_weight_are_computed_if_the_objective_needs_them(learner):
    """All decided groups; an undecided one is neither computed nor counted."""
    recipe = dataclasses.replace(learner.recipe, objective=Counting())
    whole = dataclasses.replace(learner, recipe=recipe, compiler=FastCompiler(num_threads=1))
    right = [dataclasses.replace(one, rollouts=tuple(map(_right, one.rollouts))) for one in groups()]
    unknown = dataclasses.replace(right[0].rollouts[0], decided=False)
    right[0] = dataclasses.replace(right[0], rollouts=(unknown, *right[0].rollouts[1:]))
    found = tiny_model.update(whole, tiny_model.fresh_state(), right, seed=0, step=1)
    assert not found.weights_PG.any() and found.metrics["loss"] == whole.recipe.temperature
    assert found.metrics["tokens"] == sum(one.num_tokens for one in right[1:])


def _right(rollout: Rollout) -> Rollout:
    return dataclasses.replace(rollout, correct=True)


def test_every_method_names_an_objective_and_a_credit():
    assert {method.objective for method in METHODS.values()} <= OBJECTIVES.keys()
    assert {method.credit for method in METHODS.values()} <= CREDITS.keys()
