"""The programs of decoding and of filling work in place: every array of the slots is donated and returned.

Compiled as for a run, not as in the other tests, because the compiler's optimiser could break this.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import pytest

from tests.rollout import build
from zppo_jax.compilation import Compiler
from zppo_jax.models import qwen3_5
from zppo_jax.rollout import slots
from zppo_jax.rollout.engine import Engine, Prefilled
from zppo_jax.rollout.shapes import Shapes
from zppo_jax.rollout.state import Slots

SHAPES = Shapes(buckets=(16,), patch_slots=16, max_new_tokens=496)
NUM_SLOTS = 32


@functools.cache
def model() -> qwen3_5.Model:
    return build.small_model(96, num_layers=4)


@functools.cache
def engine() -> Engine:
    return Engine(
        model().config, SHAPES, NUM_SLOTS, 2, build.banned(model()), Compiler(num_threads=1), chunk=8, penalises=True
    )


@functools.cache
def compiled(name: str) -> Any:
    program = {
        "decode": lambda: engine().compile_decode(model().params, SHAPES.num_keys, False),
        "decode, truncated": lambda: engine().compile_decode(model().params, SHAPES.num_keys, True),
        "fill": lambda: engine().compile_fill(model().params, 0, SHAPES.num_keys),
    }[name]()
    return program._future.result()


def held() -> Slots:
    return jax.eval_shape(lambda: engine().make_slots(model().params, SHAPES.num_keys))


def num_bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def key_bytes() -> int:
    """Keys and values of all layers."""
    return num_bytes([group[-1] for group in held().states])


PROGRAMS = ["decode", "decode, truncated", "fill"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_array_of_the_slots_is_updated_where_it_lies(name):
    """The outputs that alias an input are as many as the slots have arrays, and have all their bytes."""
    header = compiled(name).as_text().splitlines()[0]
    pairs = re.findall(r"\{(\d+)\}: \((\d+), \{\}, (?:may|must)-alias\)", header)
    assert len(pairs) == len(jax.tree.leaves(held()))
    assert len({source for _, source in pairs}) == len(pairs), "each output its own input"
    memory = compiled(name).memory_analysis()
    assert memory.alias_size_in_bytes >= num_bytes(held())
    print(f"{name}: {num_bytes(held()):,} bytes of slots, {memory.alias_size_in_bytes:,} aliased")


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_second_cache_is_held(name):
    """Keys and values are most of the slots here; a program's temporaries are far less than one layer of them."""
    temporary, layer = compiled(name).memory_analysis().temp_size_in_bytes, key_bytes() / 2
    assert key_bytes() > 0.9 * num_bytes(held())
    print(f"{name}: {temporary:,} bytes beside {key_bytes():,} bytes of keys and values, {layer:,.0f} a layer")
    assert temporary < layer / 4


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_instruction_copies_the_keys(name):
    shapes = {leaf.shape for group in held().states for leaf in group[-1]}
    sizes = {functools.reduce(lambda a, b: a * b, shape) for shape in shapes}
    copies = re.findall(r"= \w+\[([\d,]+)\]\S* (?:copy|transpose)\(", compiled(name).as_text())
    copied = [shape for shape in copies if functools.reduce(lambda a, b: a * b, map(int, shape.split(","))) in sizes]
    assert not copied


@pytest.mark.parametrize("name", ["decode", "fill"])
def test_what_was_given_over_is_gone(name):
    """The call deletes the caller's arrays: old slots cannot be kept, so there is one cache."""
    one, params = engine(), model().params
    before = one.make_slots(params, SHAPES.num_keys)
    if name == "decode":
        one.decode(params, one.get_weights(params), before, False, 1, ())
    else:
        cache = jax.tree.map(
            lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype),
            jax.eval_shape(lambda: slots.prefill(params, model().config, one.prefill_shapes(params, 0))),
        )
        one.fill(params, before, Prefilled(cache, one.batch_prompts((), 0), 0), ())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
