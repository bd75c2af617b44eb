"""The slots are declared once: `empty` makes arrays as the fields declare them."""

from __future__ import annotations

import dataclasses
import re

import jax
import pytest

from tests import tiny_model
from zppo_jax.rollout.state import Slots, empty

SIZES = {"B": 3, "S": 24, "2": 2}


def made(penalises: bool) -> Slots:
    config = tiny_model.model().config
    return jax.eval_shape(lambda: empty(config, SIZES["B"], SIZES["S"], ("float32", "float32"), penalises))


ARRAYS = [field for field in dataclasses.fields(Slots) if field.name != "states"]


@pytest.mark.parametrize("field", ARRAYS, ids=lambda field: field.name)
def test_a_field_is_what_it_says(field):
    """Its dtype, the sizes of its axes, and a logical name (or None) for each of them."""
    kind, axes = field.metadata["kind"], field.metadata["axes"]
    value, sizes = getattr(made(True), field.name), SIZES | {"V": tiny_model.model().config.text.vocab_size}
    shape = tuple(sizes[letter] for letter in re.findall(r"[A-Z0-9]+(?=[\],])", kind))
    if isinstance(value, dict):
        assert {leaf.shape for leaf in value.values()} == {shape} and axes == ("batch",)
        return
    assert (f"{value.dtype} ", value.shape) == (kind[: kind.index("[")], shape)
    assert len(axes) == value.ndim and (not axes or axes[0] == "batch")
    suffix = field.name.partition("_")[2]
    assert len(suffix) == value.ndim, "the name's suffix has a letter for each axis"


@pytest.mark.parametrize("penalises", [False, True])
def test_every_array_of_the_slots_has_axes(penalises):
    slots, config = made(penalises), tiny_model.model().config
    named = slots.axes(config)
    ranks = jax.tree.map(lambda leaf, axes: (leaf.ndim, len(axes)), slots, named)
    pairs = jax.tree.leaves(ranks, is_leaf=lambda pair: isinstance(pair, tuple) and isinstance(pair[0], int))
    assert len(pairs) == len(jax.tree.leaves(slots)) and all(ndim == count for ndim, count in pairs)
    assert (slots.seen_BV is None, named.said_BV is None) == (not penalises, not penalises)
