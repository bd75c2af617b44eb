"""The decoding weights are made once from the same parameters, and forgotten when they are released."""

from __future__ import annotations

import dataclasses

import jax

from tests import tiny_model
from zppo_jax.models.qwen3_5 import decode_weights
from zppo_jax.rollout.kept import DecodingWeights, Kept
from zppo_jax.rollout.requests import Request
from zppo_jax.rollout.sample import sample


def test_made_once_for_the_same_parameters():
    held, made, join = DecodingWeights(), [], tiny_model.engine().compile_join(tiny_model.model().params)

    def make():
        made.append(len(made))
        return {"number": made[-1]}

    first, second = {"text": 1}, {"text": 1}
    other = tiny_model.engine(4).compile_join(tiny_model.model().params)
    sets = (first, first, second, second, first)
    assert [held.get(join, params, make)["number"] for params in sets] == [0, 0, 1, 1, 2], "equal ones are not the same"
    held.release()
    assert [held.get(program, first, make)["number"] for program in (join, other, other)] == [3, 4, 4]


def test_the_old_ones_are_gone_before_the_new_ones_are_made():
    held, join = DecodingWeights(), tiny_model.engine().compile_join(tiny_model.model().params)
    held.get(join, {}, lambda: {"large": 1})
    assert held.get(join, {}, lambda: {"were held": held._made})["were held"] is None


def test_new_parameters_are_seen_by_the_sampler():
    """Two calls with one set, then with another: rollouts are those of a sampler without cache."""
    engine = dataclasses.replace(tiny_model.engine(), kept=Kept())
    sets = [tiny_model.model(seed).params for seed in (0, 0, 1)]
    requests = [Request(one.prompt.uid, one.features, 2) for one in tiny_model.items()]
    for params in sets:
        fresh = dataclasses.replace(engine, kept=Kept())
        expected, actual = ([[list(one.token_ids_T) for one in group] for group in sample(each, params, requests)]
                            for each in (fresh, engine))  # fmt: skip
        assert actual == expected


def test_what_is_not_copied_is_the_parameters_own():
    engine = dataclasses.replace(tiny_model.engine(), kept=Kept())
    params = tiny_model.model().params
    weights = engine.get_weights(params)
    assert weights["embed"] is params["text"]["embed"]
    shapes = jax.eval_shape(lambda: decode_weights.prepare(params["text"], engine.config.text, engine.num_slots))
    assert jax.tree.map(lambda x: x.shape, weights) == jax.tree.map(lambda x: x.shape, shapes)
