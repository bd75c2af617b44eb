"""configs/one_gpu.py and configs/colab.py: the time and the memory that their docstrings promise."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks.on_gpu.decode import step_bytes
from zppo_jax import command
from zppo_jax.config import Config, from_config_dict
from zppo_jax.models import qwen3_5
from zppo_jax.models.qwen3_5 import decode_weights, flops, hf, sizes
from zppo_jax.rollout import memory
from zppo_jax.setup import engines
from zppo_jax.setup.learning import transform_of
from zppo_jax.zppo.methods import METHODS

ROOT = Path(__file__).parent.parent.parent
SHARE_OF_FLOPS, SHARE_OF_BANDWIDTH = 0.3, 0.4
TFLOPS = {"one_gpu": 989, "colab": 197}
BANDWIDTH = {"one_gpu": 3.35e12, "colab": 0.819e12}
TEACHERS = {"one_gpu": "9B", "colab": None}


def path_of(name: str) -> str:
    return str(ROOT / "configs" / f"{name}.py")


def docstring(name: str) -> str:
    return ast.get_docstring(ast.parse(Path(path_of(name)).read_text())) or ""


def said(name: str, heading: str) -> dict[str, float]:
    """The table below a heading of the docstring: {row: its first number}."""
    table = re.split(r"\n\n(?=\S)", docstring(name).partition(heading)[2])[0]
    return {
        row: float(number.replace(",", "")) for row, number in re.findall(r"^    ([a-z' ]+?)  +([\d.,]+)", table, re.M)
    }


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """The docstring's arithmetic for a configuration on its device."""

    name: str
    config: Config

    def rows(self, size: str) -> int:
        """Responses of a model that are decoded at once."""
        rollout, shape = self.config.rollout, sizes.get(size)
        budget, dtypes = 1e9 * rollout.cache_gigabytes, (self.config.model.dtype, rollout.state_dtype)
        return memory.plan(shape, engines.shapes_of_prompts(self.config, shape), rollout.slots, budget, dtypes)

    def decoding(self, size: str, tokens: int, fp8: bool = False) -> float:
        """Seconds to decode tokens, each after a prompt of the first bucket and half of a response."""
        rows, context = self.rows(size), self.config.prompt.buckets[0] + self.config.rollout.max_new_tokens / 2
        parts = step_bytes(sizes.get(size), rows, context)
        parts["weights"] /= 2 if fp8 else 1
        return tokens / rows * sum(parts.values()) / (SHARE_OF_BANDWIDTH * BANDWIDTH[self.name])

    def computing(self, work: float) -> float:
        return work / (1e12 * SHARE_OF_FLOPS * TFLOPS[self.name])

    @property
    def num_groups(self) -> int:
        questions = self.config.rollout.questions_per_step
        return questions + int(self.config.replay.fraction * questions) + self.num_helped

    @property
    def num_helped(self) -> int:
        return int(self.config.zppo.augmentation_fraction * self.config.rollout.questions_per_step)

    @property
    def num_tokens(self) -> int:
        return self.num_groups * self.config.rollout.group_size * self.config.rollout.max_new_tokens

    def step(self, teacher: str | None, fp8: bool = False) -> dict[str, float]:
        """Seconds of the parts of a step, `teacher` being a model on this device."""
        config, longest = self.config, self.config.rollout.max_new_tokens
        row = config.prompt.buckets[-1] + longest
        trained = self.num_tokens + self.num_groups * config.prompt.buckets[0]
        parts = {
            "student decodes": self.decoding("0.8B", self.num_tokens),
            "update": self.computing(flops.of_training(sizes.get("0.8B"), row) * trained),
        }
        if teacher:
            shortened, prompt = self.num_helped * 8, longest + 512
            reading = flops.of_prefill(sizes.get(teacher), prompt) * prompt * shortened
            answered = self.num_helped * config.teacher.num_rollouts * longest
            parts["teacher answers"] = self.decoding(teacher, answered, fp8)
            parts["teacher reads"] = self.computing(reading)
            parts["teacher writes"] = self.decoding(teacher, shortened * config.teacher.compress.max_tokens, fp8)
        return parts

    @property
    def evaluation(self) -> float:
        return self.decoding("0.8B", self.config.eval.num_questions * self.config.rollout.max_new_tokens)

    def hours(self, teacher: str | None, num_steps: int, fp8: bool = False) -> float:
        evaluations = num_steps // self.config.eval.every + 1
        return (num_steps * sum(self.step(teacher, fp8).values()) + evaluations * self.evaluation) / 3600


def arithmetic(name: str) -> Arithmetic:
    return Arithmetic(name, from_config_dict(command.load_config(path_of(name))))


@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_a_valid_configuration(name, method):
    assert from_config_dict(command.load_config(f"{path_of(name)}:{method}")).method == method


@pytest.mark.parametrize("name", TEACHERS)
def test_prompts_hold_a_question_and_eight_candidates_and_the_run_is_a_single_pass(name):
    config = arithmetic(name).config
    plain, longest = config.prompt.buckets[-2:]
    assert longest >= plain + 8 * (config.teacher.compress.max_tokens + 32) + 64
    assert config.data.num_questions == config.num_steps * config.rollout.questions_per_step


@pytest.mark.parametrize(("name", "teacher"), TEACHERS.items())
def test_the_time_is_what_the_docstring_says(name, teacher):
    found = arithmetic(name)
    parts = found.step(teacher)
    expected = parts | {"together": sum(parts.values()), "evaluation": found.evaluation}
    assert said(name, "Time of a step") == {part: round(seconds) for part, seconds in expected.items()}
    hours, words = found.hours(teacher, found.config.num_steps), " ".join(docstring(name).split())
    assert hours < 24 and f"{found.config.num_steps} steps take {hours:.1f} hours" in words
    assert f"{found.num_tokens:,} tokens in {found.num_groups * 8} responses, {found.rows('0.8B')} at once" in words


def test_other_teachers_of_one_gpu_take_what_the_docstring_says():
    found, words = arithmetic("one_gpu"), " ".join(docstring("one_gpu").split())
    assert f"without a teacher on this device (served, if it answers in time) {found.hours(None, 200):.1f}" in words
    seconds, hours = sum(found.step("27B", fp8=True).values()), found.hours("27B", 120, fp8=True)
    assert f"{found.rows('27B')} rows at once) a step takes {seconds:.0f} s, and 120 steps {hours:.1f} hours" in words
    assert hours < 24 and "--config.num_steps=120" in words


def gigabytes(tree: Any) -> float:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) / 1e9


def decoding_weights(size: str, num_rows: int) -> float:
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), qwen3_5.abstract_params(size))
    shape = sizes.get(size).text
    return gigabytes(jax.eval_shape(lambda: decode_weights.join(params["text"], shape, num_rows, True)))


@pytest.mark.parametrize(("name", "teacher"), TEACHERS.items())
def test_the_memory_is_what_the_docstring_says(name, teacher):
    found = arithmetic(name)
    config, params = found.config, hf.abstract_params(sizes.get("0.8B"), found.config.model.dtype)
    dtypes = (config.model.dtype, config.rollout.state_dtype)

    def caches(size: str) -> float:
        shapes = engines.shapes_of_prompts(config, sizes.get(size))
        return memory.device_bytes(sizes.get(size), found.rows(size), shapes.num_keys, dtypes) / 1e9

    expected = {
        "parameters": gigabytes(params),
        "optimiser": gigabytes(jax.eval_shape(transform_of(config).init, params)),
        "gradient": sum(leaf.size * 4 for leaf in jax.tree.leaves(params)) / 1e9,
        "student's caches": caches("0.8B"),
        "student's decoding": decoding_weights("0.8B", found.rows("0.8B")),
    }
    if teacher:
        expected |= {
            "teacher": sum(leaf.size * 2 for leaf in jax.tree.leaves(qwen3_5.abstract_params(teacher))) / 1e9,
            "teacher's caches": caches(teacher),
            "teacher's decoding": decoding_weights(teacher, found.rows(teacher)),
        }
    assert said(name, "Memory in GB") == {part: round(value, 1) for part, value in expected.items()}
