"""The decoding weights hold all parameters of the layers, and their declared axes fit the arrays."""

from __future__ import annotations

import collections

import jax
import pytest

from tests.models import tiny
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import config as configs
from zppo_jax.models.qwen3_5 import decode_weights, text
from zppo_jax.models.qwen3_5.parameters import count, flatten

CONFIG = configs.from_dict(tiny.config_dict()).text


@pytest.mark.parametrize(("kind", "sources"), [("linear", decode_weights._LINEAR), ("full", decode_weights._FULL)])
def test_every_parameter_of_a_layer_is_in_one_weight(kind, sources):
    taken = collections.Counter(path for source in sources.values() for path in source.paths)
    assert taken == dict.fromkeys(flatten(text.abstract(CONFIG)[kind]), 1)


def test_every_weight_has_axes_and_all_elements_are_there():
    params = qwen3_5.abstract_params(configs.from_dict(tiny.config_dict()))["text"]
    shapes = jax.eval_shape(lambda params: decode_weights.prepare(params, CONFIG, 16), params)
    axes = decode_weights.weight_axes(CONFIG)
    jax.tree.map(lambda leaf, names: pytest.fail(f"{leaf}, {names}") if leaf.ndim != len(names) else 0, shapes, axes)
    layers = {name: params[name] for name in ("linear", "full")}
    assert count(shapes["layers"]) == count(layers)


def test_the_inputs_of_each_product_are_known():
    linear, full = (dict(decode_weights._num_inputs(CONFIG)[0][place]) for place in (0, -1))
    products = [{name: number for name, number in layer.items() if number} for layer in (linear, full)]
    mlp = {"gate_up": 1, "down": 1}
    assert products == [{"inputs": 1, "out": 2} | mlp, {"q": 1, "kv": 1, "o": 2} | mlp]
