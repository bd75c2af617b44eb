"""The published sizes: their exact numbers of parameters, and their configurations written and read back."""

from __future__ import annotations

import json
import math

import jax
import pytest

from zppo_jax import parallel
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import config as configs
from zppo_jax.models.qwen3_5 import hf, sizes, vlm
from zppo_jax.models.qwen3_5.parameters import count

# Without multi-token prediction. That of 9B is checked to the byte: its index says 19,306,216,416 bytes in all.
TOTAL = {
    "0.8B": 852_985_920,
    "2B": 2_213_241_664,
    "4B": 4_539_265_536,
    "9B": 9_409_813_744,
    "27B": 27_356_728_560,
}
# In millions; an untied head is a second table of the embedding's size.
VISION = {"0.8B": 100.6, "2B": 331.4, "4B": 333.5, "9B": 456.0, "27B": 460.7}
EMBEDDING = {"0.8B": 254.3, "2B": 508.6, "4B": 635.7, "9B": 1017.1, "27B": 1271.4}
NAMES = tuple(sizes.SIZES)


def millions(count: int) -> float:
    return round(count / 1e6, 1)


@pytest.mark.parametrize("name", NAMES)
def test_each_size_has_its_number_of_parameters(name):
    shapes = qwen3_5.abstract_params(name)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes))
    assert count(shapes) == TOTAL[name]
    assert millions(count(shapes["vision"])) == VISION[name]
    tables = [shapes["text"]["embed"]] + ([shapes["text"]["lm_head"]] if name in ("9B", "27B") else [])
    assert [millions(math.prod(table.shape)) for table in tables] == [EMBEDDING[name]] * len(tables)


def test_the_file_of_the_9b_model_has_its_size_to_the_byte():
    config = sizes.get("9B")
    bytes_there = {"text/linear/mixer/a_log": 4, "text/linear/mixer/norm/weight": 4}
    total = sum(math.prod(entry.shape_there) * bytes_there.get(entry.path, 2) for entry in hf.table(config))
    hidden, inner, query, keys, head = 4096, 12288, 16 * 256, 4 * 256, 256
    attention = hidden * 2 * query + 2 * hidden * keys + query * hidden + 2 * head
    prediction = 2 * hidden * hidden + attention + 3 * hidden * inner + 5 * hidden
    assert total + 2 * prediction == 19_306_216_416


@pytest.mark.parametrize("name", NAMES)
def test_a_size_is_written_and_read_back(name):
    config = sizes.get(name)
    assert configs.from_dict(json.loads(json.dumps(configs.to_dict(config, "bfloat16")))) == config
    assert config.stop_token_ids == (248046, 248044)


def test_a_name_and_its_configuration_mean_the_same():
    assert qwen3_5.abstract_params("9B") == qwen3_5.abstract_params(sizes.get("9B"))


def test_another_name_is_answered_with_the_names():
    with pytest.raises(ValueError, match=r"no size '7B': give one of 0\.8B, 2B, 4B, 9B, 27B"):
        qwen3_5.abstract_params("7B")


@pytest.mark.parametrize("name", NAMES)
def test_every_size_has_a_sharding_on_a_mesh_of_8_by_4(name):
    """The memory of one of 32 devices, from the shapes alone: its part of every divided leaf, all of the others."""
    mesh, shapes = parallel.abstract_mesh(fsdp=8, tensor=4), qwen3_5.abstract_params(name)
    shardings = parallel.shardings(mesh, shapes, vlm.logical_axes(sizes.get(name)))
    assert jax.tree.structure(shardings) == jax.tree.structure(shapes)
    parts = jax.tree.map(lambda leaf, sharding: math.prod(sharding.shard_shape(leaf.shape)), shapes, shardings)
    assert sum(jax.tree.leaves(parts)) < 1.2 * TOTAL[name] / 32
