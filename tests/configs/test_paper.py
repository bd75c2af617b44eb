"""configs/paper.py: the paper's values; 0p8b.py, 2b.py, 4b.py and 9b.py: the memory that their docstrings promise."""

from __future__ import annotations

import ast
import functools
import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from configs import paper, tiny
from zppo_jax import command, parallel
from zppo_jax.config import Config, changed_keys, flat, from_config_dict, keys, to_json
from zppo_jax.models.qwen3_5 import decode_weights, hf, sizes, text, vlm
from zppo_jax.setup.learning import transform_of
from zppo_jax.update import freeze
from zppo_jax.zppo.methods import METHODS

ROOT = Path(__file__).parent.parent.parent
FILES = {"0.8B": "0p8b", "2B": "2b", "4B": "4b", "9B": "9b"}

TABLE_8: dict[str, Any] = {
    "teacher.path": "Qwen/Qwen3.5-27B-FP8",
    "model.dtype": "bfloat16",
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.999,
    "optimizer.eps": 1e-8,
    "optimizer.weight_decay": 0.1,
    "optimizer.state_dtype": "bfloat16",
    "optimizer.learning_rate": 1e-6,
    "optimizer.schedule": "constant",
    "optimizer.warmup_steps": 0,
    "optimizer.grad_clip": 1.0,
    "update.inner_epochs": 1,
    "rollout.group_size": 8,
    "teacher.num_rollouts": 4,
    "mesh.tensor": 1,
    "rollout.temperature": 1.0,
    "rollout.top_p": 1.0,
    "rollout.top_k": 0,
    "teacher.temperature": 1.0,
    "teacher.top_p": 1.0,
    "rollout.max_new_tokens": 12288,
    "update.clip_low": 0.2,
    "update.clip_high": 0.28,
    "update.dual_clip": 10.0,
    "update.num_minibatches": 4,
    "advantage.normalisation": "nonzero",
    "zppo.threshold": 0.5,
    "replay.fraction": 0.25,
    "replay.capacity": 10000,
    "zppo.augmentation_fraction": 0.25,
    "teacher.compress.enabled": True,
    "teacher.compress.max_tokens": 512,
    "rollout.questions_per_step": 384,
    "num_steps": 200,
}
"""The items of Table 8 of arXiv:2606.18216 that are keys."""

EVALUATION = {
    "eval.temperature": 0.6,
    "eval.top_p": 0.95,
    "eval.top_k": 20,
    "eval.min_p": 0.0,
    "eval.presence_penalty": 1.5,
    "eval.repetition_penalty": 1.0,
}
"""Decoding of all benchmarks, Appendix B.2."""

RESULTS = {
    "0.8B": ((41.0, 25.2, 48.3), (43.8, 27.1, 49.6, 61), (50.3, 33.1, 52.8, 68)),
    "2B": ((56.8, 45.3, 60.6), (58.7, 46.7, 61.2, 69), (62.0, 50.4, 63.2, 79)),
    "4B": ((66.9, 61.6, 71.5), (68.2, 62.1, 70.6, 75), (70.9, 65.5, 71.8, 92)),
    "9B": ((70.2, 64.9, 73.8), (71.2, 65.7, 73.2, 90), (73.0, 68.8, 74.2, 110)),
}
"""Macro averages (VLM, LLM, video) of base, GRPO and ZPPO, and the hours of Table 9."""


def path_of(size: str) -> str:
    return str(ROOT / "configs" / f"{FILES[size]}.py")


def config_of(size: str) -> Config:
    return from_config_dict(command.load_config(path_of(size)))


def docstring(size: str) -> str:
    return ast.get_docstring(ast.parse(Path(path_of(size)).read_text())) or ""


@functools.cache
def abstract_state(size: str) -> dict[str, Any]:
    """The shapes and dtypes of the student's parameters and optimiser under the configuration."""
    config = config_of(size)
    params = hf.abstract_params(sizes.get(size), config.model.dtype)
    trainable, _ = freeze.split(params, config.optimizer.freeze)
    return {"params": params, "optimizer": jax.eval_shape(transform_of(config).init, trainable)}


def gigabytes(tree: Any) -> float:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) / 1e9


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("size", FILES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_a_valid_configuration(size, method):
    assert from_config_dict(command.load_config(f"{path_of(size)}:{method}")).method == method


def test_table_8_is_held():
    values = flat(to_json(from_config_dict(paper.get_config())))
    assert {name: values[name] for name in TABLE_8} == TABLE_8
    assert {name: values[name] for name in EVALUATION} == EVALUATION
    assert values["optimizer.freeze"] == []
    assert (values["prompt.min_pixels"], values["prompt.max_pixels"]) == (262_144, 1_310_720)
    updates = values["num_steps"] * values["update.num_minibatches"] * values["update.inner_epochs"]
    assert updates == 800 and values["rollout.questions_per_step"] // values["update.num_minibatches"] == 96
    assert values["data.num_questions"] == values["num_steps"] * values["rollout.questions_per_step"], "a single pass"
    assert values["data.source"] == "arrayrecord:data/zppo77k"
    assert 4096 in values["prompt.buckets"], "max prompt"
    # NCQ: the question and eight candidates, each in its two tags and with its answer in the list of wrong ones.
    longest = 4096 + 8 * (512 + 32) + 64
    assert values["prompt.buckets"][-1] >= longest


def assignments(name: str) -> dict[str, str]:
    """The lines `config.KEY = VALUE` of a file of configs/; each key comes once."""
    source = (ROOT / "configs" / f"{name}.py").read_text()
    lines = re.findall(r"^    config\.([\w.]+) = (.+?)(?:  #.*)?$", source, re.MULTILINE)
    found = dict(lines)
    assert len(found) == len(lines)
    return {key: value for key, value in found.items() if value != "ConfigDict()"}


def test_every_key_has_one_home():
    """A key with a value in the paper is a line of paper.py, with a literal value; common.py has the other keys."""
    papers, commons = assignments("paper"), assignments("common")
    assert {"prompt.min_pixels", "prompt.max_pixels", *TABLE_8, *EVALUATION} <= papers.keys()
    assert not papers.keys() & commons.keys()
    assert papers.keys() | commons.keys() == {key.name for key in keys()}
    for key, value in (commons | papers).items():
        assert re.fullmatch(r"[\w\"'.:/(), *-]+", value), f"{key} = {value}"


@pytest.mark.parametrize("size", FILES)
def test_a_size_says_its_student_and_what_that_leaves_for_caches(size):
    changed = changed_keys(to_json(from_config_dict(paper.get_config())), to_json(config_of(size)), ignore=())
    assert changed.pop("model.path") == ("", f"Qwen/Qwen3.5-{size}")
    assert changed == ({"rollout.cache_gigabytes": (40.0, 24.0)} if size == "9B" else {})


def test_tiny_sets_only_what_differs():
    changed = changed_keys(
        to_json(from_config_dict(paper.get_config())), to_json(from_config_dict(tiny.get_config())), ignore=()
    )
    assert changed.keys() == assignments("tiny").keys()


# ---------------------------------------------------------------- docstrings


@pytest.mark.parametrize("size", FILES)
def test_the_docstring_has_commands_results_and_hours(size):
    words = docstring(size)
    assert f"python -m zppo_jax.main --config=configs/{FILES[size]}.py --workdir=" in words
    assert f"--config=configs/{FILES[size]}.py" in words[words.index("TPU pod") :]
    found = [
        tuple(float(number) for number in re.findall(r"[\d.]+", re.search(rf"^ +{name} (.*)$", words, re.M)[1]))  # pyright: ignore[reportOptionalSubscript]
        for name in ("before", "GRPO", "ZPPO")
    ]
    assert tuple(found) == RESULTS[size]


@pytest.mark.parametrize("size", FILES)
def test_the_command_of_the_pod_is_valid(size):
    """The command's overrides are keys, and the configuration with them can be run."""
    tree = command.load_config(path_of(size))
    changes = dict(re.findall(r"--config\.([\w.]+)=(\d+)", docstring(size)))
    assert changes
    tree.update_from_flattened_dict({name: int(value) for name, value in changes.items()})
    from_config_dict(tree)


@pytest.mark.parametrize("size", FILES)
def test_the_memory_is_what_the_docstring_says(size):
    """Within 0.1 GB: parameters and optimiser of a run, the gradient, the teacher, both models' caches, and their
    decoding weights."""
    config, state = config_of(size), abstract_state(size)
    params = jax.tree.leaves(state["params"])
    slots = config.prompt.buckets[-1] + config.rollout.max_new_tokens

    def caches(name: str) -> float:
        shape = sizes.get(name).text
        return gigabytes(jax.eval_shape(lambda: text.empty_cache(shape, config.rollout.slots, slots, jnp.bfloat16)))

    def decoding(params: dict[str, Any], name: str, moves: bool) -> float:
        shape, slots = sizes.get(name).text, config.rollout.slots
        return gigabytes(jax.eval_shape(lambda: decode_weights.join(params["text"], shape, slots, moves)))

    large = sizes.get("27B")
    teacher = hf.abstract_params(large, "bfloat16", hf.published_float8_kernels(large))
    expected = {
        "parameters": gigabytes(state["params"]),
        "optimiser": gigabytes(state["optimizer"]),
        "gradient": gigabytes(jax.eval_shape(lambda: [jnp.zeros(leaf.shape, jnp.float32) for leaf in params])),
        "teacher": gigabytes(teacher),
        "student's caches": caches(size),
        "teacher's caches": caches("27B"),
        "student's decoding": decoding(hf.abstract_params(sizes.get(size), "bfloat16"), size, moves=True),
        "teacher's decoding": decoding(teacher, "27B", moves=False),
    }
    table = docstring(size).partition("Memory in GB")[2].partition("What the paper reports")[0]
    said = {name: float(number) for name, number in re.findall(r"^    ([a-z' ]+?)  +([\d.]+)   ", table, re.M)}
    assert said == {name: round(value, 1) for name, value in expected.items()}
    count = sum(leaf.size for leaf in params)
    assert f"{count:,} in bfloat16" in docstring(size)


@pytest.mark.parametrize("size", FILES)
def test_the_optimiser_keeps_three_numbers_for_each_parameter(size):
    """Two moments and the rounding error, all in bfloat16; freezing the vision tower saves its share of them."""
    state = abstract_state(size)
    count, vision = (
        sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (state["params"], state["params"]["vision"])
    )
    kept = [leaf for leaf in jax.tree.leaves(state["optimizer"]) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert sum(leaf.size for leaf in kept) == 3 * count and {leaf.dtype for leaf in kept} == {jnp.dtype("bfloat16")}
    trainable, _ = freeze.split(state["params"], ("vision/**",))
    frozen = jax.eval_shape(transform_of(config_of(size)).init, trainable)
    assert gigabytes(state["optimizer"]) - gigabytes(frozen) == pytest.approx(3 * 2 * vision / 1e9)


# ---------------------------------------------------------------- on a mesh


def sharded_state(size: str, mesh: Any) -> dict[str, Any]:
    """The abstract state with a sharding on every leaf; a moment is sharded like its parameter."""
    state, transform = abstract_state(size), transform_of(config_of(size))
    shardings = parallel.shardings(mesh, state["params"], vlm.logical_axes(sizes.get(size)))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    optimizer: Any = optax.tree.map_params(
        transform,
        lambda _, sharding: sharding,
        state["optimizer"],
        shardings,
        transform_non_params=lambda _: whole,
    )
    placed = {"params": shardings, "optimizer": optimizer}
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state, placed
    )


def gigabytes_a_device(tree: Any) -> float:
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves) / 1e9


@pytest.mark.parametrize("size", FILES)
@pytest.mark.parametrize("mesh", [(1, 8, 1), (1, 64, 1), (1, 8, 4)], ids=["node", "pod", "8 x 4"])
def test_the_abstract_state_is_shared_by_the_devices(size, mesh):
    """A device holds its part of the whole, and at most 0.2 GB of uncut arrays (norms, biases, the merger)."""
    state, devices = sharded_state(size, parallel.abstract_mesh(*mesh)), math.prod(mesh)
    for part in ("params", "optimizer"):
        share, held = gigabytes(state[part]) / devices, gigabytes_a_device(state[part])
        assert share <= held < share + 0.2, part
