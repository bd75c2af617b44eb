"""Caches planned from a byte budget, and rings for short prompts."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from tests import tiny_model
from tests.tiny_model import SHAPES
from zppo_jax.errors import ConfigError
from zppo_jax.models.qwen3_5 import decode_weights, sizes
from zppo_jax.rollout import memory, state
from zppo_jax.rollout.shapes import Shapes

DTYPES = ("bfloat16", "float32")


def config():
    return tiny_model.model().config


def held_bytes(num_rows: int, penalises: bool = False) -> int:
    """The bytes of real arrays of slots."""
    held = state.empty(config(), num_rows, SHAPES.num_keys, DTYPES, penalises)
    return sum(leaf.nbytes for leaf in jax.tree.leaves(held))


def test_the_plan_counts_what_is_allocated():
    for num_rows in (1, 7):
        assert memory.device_bytes(config(), num_rows, SHAPES.num_keys, DTYPES) == held_bytes(num_rows)


@pytest.mark.parametrize("fitting", [1, 5])
def test_as_many_slots_as_the_budget_holds(fitting):
    for spare, expected in ((0, fitting), (-1, fitting - 1)):
        budget = held_bytes(fitting) + spare
        if expected:
            assert memory.plan(config(), SHAPES, 100, budget, DTYPES) == expected
    assert memory.plan(config(), SHAPES, 3, held_bytes(50), DTYPES) == 3, "never more than wanted"


def test_penalties_take_room():
    """Two flags for each row and token of the vocabulary."""
    assert held_bytes(5, True) - held_bytes(5) == 5 * 2 * config().text.vocab_size
    for penalises, expected in ((False, 5), (True, 4)):
        assert memory.plan(config(), SHAPES, 5, held_bytes(5), DTYPES, penalises) == expected


@pytest.mark.parametrize(("wanted", "spare", "expected"), [(1, 1, 4), (6, 1, 8), (8, 1, 8), (8, 0, 4)])
def test_slots_come_in_multiples_of_the_devices_that_divide_them(monkeypatch, wanted, spare, expected):
    """Without a mesh a device holds what four of them would."""
    monkeypatch.setattr(memory.parallel, "num_shards", lambda name: 4)
    assert memory.plan(config(), SHAPES, wanted, held_bytes(7 + spare), DTYPES) == expected


def test_without_a_limit_all_that_are_wanted():
    assert memory.plan(config(), SHAPES, 7, math.inf, DTYPES) == 7


def test_what_cannot_fit_says_by_how_much():
    need = held_bytes(1)
    with pytest.raises(ConfigError, match=r"rollout\.cache_gigabytes = .*16 \+ 8 tokens keeps .* GB more: raise it to"):
        memory.plan(config(), SHAPES, 8, need - 1, DTYPES)


def test_the_caller_words_what_cannot_fit_and_its_fix_fits():
    """Rounded up to a megabyte: the named value is never refused again."""
    messages = memory.BudgetMessages("--room={given:g}", "have {need:g}")
    with pytest.raises(ConfigError, match=r"^--room=1e-06: a rollout of .* more: have 0\.001$"):
        memory.plan(config(), SHAPES, 8, 1000.0, DTYPES, messages=messages)
    assert memory.plan(config(), SHAPES, 1, 1e6, DTYPES) == 1


def on_devices(*stats: dict[str, int] | None) -> Any:
    """A single leaf in place of parameters, on devices that report this about their memory."""
    devices = [SimpleNamespace(memory_stats=lambda one=one: one) for one in stats]
    return SimpleNamespace(sharding=SimpleNamespace(addressable_devices=devices))


def test_what_is_free_is_what_the_fullest_device_says(monkeypatch):
    """Minus the decoding weights, and a margin."""
    params = tiny_model.model().params
    joined = jax.eval_shape(lambda: decode_weights.join(params["text"], config().text, 16))
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(joined))
    assert memory.free_budget(config(), params, 16) == math.inf, "a CPU does not say"
    stats = ({"bytes_limit": 10**9, "bytes_in_use": 10**8}, {"bytes_limit": 10**9, "bytes_in_use": 4 * 10**8})
    found = memory.free_budget(config(), {"a": on_devices(*stats)} | params, 16)
    assert found == pytest.approx((1 - memory.MARGIN) * (6 * 10**8 - weights))
    monkeypatch.setattr(memory.parallel, "num_shards", lambda name: 4)
    gathered = 4 * (weights + params["text"]["embed"].nbytes)
    found = memory.free_budget(config(), {"a": on_devices(*stats)} | params, 16)
    assert found == pytest.approx((1 - memory.MARGIN) * (6 * 10**8 - weights - gathered)), "what fsdp divides"
    assert memory.free_budget(config(), {"a": on_devices(None, {})} | params, 16) == math.inf


def test_bytes_of_the_published_models():
    """Keys and values of 12 KiB per token and 19.4 MB of states for 0.8B, in bfloat16 with float32 states."""
    shape = sizes.get("0.8B")
    by_keys = [memory.device_bytes(shape, 1, keys, DTYPES) for keys in (1000, 2000)]
    assert (by_keys[1] - by_keys[0]) / 1000 == 12 * 1024 + 1, "and a flag"
    states = by_keys[0] - 1000 * (12 * 1024 + 1)
    assert states == pytest.approx(18 * (3 * 6144 * 2 + 16 * 128 * 128 * 4), abs=200)


@pytest.mark.parametrize(
    ("buckets", "max_new_tokens", "rings"),
    [
        ((20, 64, 192), 16, (36, 80, 208)),
        ((1024, 2048, 4096), 12_288, (16_384, 16_384, 16_384)),
        ((10, 12, 40), 10, (22, 22, 50)),
        ((64,), 8, (72,)),
    ],
)
def test_short_prompts_are_decoded_in_a_small_ring_where_that_is_worth_a_program(buckets, max_new_tokens, rings):
    shapes = Shapes(buckets, patch_slots=4, max_new_tokens=max_new_tokens)
    assert tuple(shapes.ring_of(bucket) for bucket in range(len(buckets))) == rings
    assert all(ring >= length + max_new_tokens for ring, length in zip(rings, buckets, strict=True))
    assert dataclasses.replace(shapes, buckets=buckets[-1:]).ring_of(0) == shapes.num_keys == rings[-1]
