"""Every value is checked before anything is compiled; a fault is one line that names the key, the value and the fix."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from configs import paper, tiny
from zppo_jax.config import binding, changed_keys, closest_key, from_config_dict, keys, step_size, to_json
from zppo_jax.errors import ConfigError

KEYS = {key.name: key for key in keys()}


def put(tree: Any, name: str, value: Any) -> Any:
    """Sets a dotted key without ConfigDict's type check."""
    *path, leaf = name.split(".")
    values = nested = tree.to_dict()
    for part in path:
        nested = nested[part]
    nested[leaf] = value
    return values


def refusal(values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        from_config_dict(values)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("module", [paper, tiny])
@pytest.mark.parametrize("method", ["zppo", "grpo"])
def test_shipped_configurations_are_accepted(module, method):
    config = from_config_dict(module.get_config(method))
    assert config.method == method


def test_the_papers_values():
    config = from_config_dict(paper.get_config())
    assert (config.rollout.group_size, config.teacher.num_rollouts, config.update.num_minibatches) == (8, 4, 4)
    assert config.rollout.questions_per_step == 384 and config.rollout.max_new_tokens == 12_288
    assert (config.replay.fraction, config.replay.capacity, config.zppo.augmentation_fraction) == (0.25, 10_000, 0.25)
    assert (config.update.clip_low, config.update.clip_high, config.update.dual_clip) == (0.2, 0.28, 10.0)
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (1e-6, 0.1)
    assert (config.optimizer.b1, config.optimizer.b2, config.optimizer.eps) == (0.9, 0.999, 1e-8)


def test_the_section_update_is_reached_like_the_others():
    tree = tiny.get_config()
    tree.update.num_minibatches = 2
    assert from_config_dict(tree).update.num_minibatches == 2


def test_an_integer_will_do_for_a_float_and_a_list_for_a_tuple():
    config = from_config_dict(put(tiny.get_config(), "optimizer.learning_rate", 1))
    assert isinstance(config.optimizer.learning_rate, float)
    assert from_config_dict(put(tiny.get_config(), "prompt.buckets", [8, 16])).prompt.buckets == (8, 16)
    frozen = from_config_dict(put(tiny.get_config(), "optimizer.freeze", ["vision/**"]))
    assert frozen.optimizer.freeze == ("vision/**",)


def test_a_config_cannot_be_changed_afterwards():
    config = from_config_dict(tiny.get_config())
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.rollout.group_size = 3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("rollout.group_sise", "rollout.group_size"),
        ("rolout.group_size", "rollout.group_size"),
        ("group_size", "rollout.group_size"),
        ("update.learning_rate", "optimizer.learning_rate"),
        ("sed", "seed"),
    ],
)
def test_an_unknown_key_is_answered_with_the_one_that_was_meant(name, meant):
    assert closest_key(name, list(KEYS)) == meant


def test_unknown_missing_and_section_keys_are_named():
    values = tiny.get_config().to_dict()
    values["rollout"]["group_sise"] = 4
    assert refusal(values) == "rollout.group_sise = 4: there is no such key; did you mean rollout.group_size?"
    values = tiny.get_config().to_dict()
    del values["update"]["num_minibatches"]
    assert "update.num_minibatches is missing" in refusal(values)
    values = tiny.get_config().to_dict()
    values["update"] = 4
    assert "update is a section" in refusal(values) and "update.num_minibatches" in refusal(values)


@pytest.mark.parametrize("name", list(KEYS))
def test_every_key_refuses_a_wrong_type(name):
    tuples = {tuple[int, ...]: (1, "a"), tuple[str, ...]: ("a", 1)}
    wrong = ({int: 4.5, float: "fast", bool: 1, str: 3} | tuples)[KEYS[name].type]
    message = refusal(put(tiny.get_config(), name, wrong))
    assert message.startswith(f"{name} = {wrong!r}") and "give" in message


@pytest.mark.parametrize("name", [name for name, key in KEYS.items() if key.type in (int, float)])
def test_true_is_no_number(name):
    assert "wrong type" in refusal(put(tiny.get_config(), name, True))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (key.name, value)
        for key in KEYS.values()
        for value in (
            [] if key.setting.minimum is None else [key.setting.minimum - 1],
            [] if key.setting.above is None else [key.setting.above],
            [] if key.setting.maximum is None else [key.setting.maximum + 1],
            [] if key.setting.below is None else [key.setting.below],
            ["nonsense"] if key.setting.choices else [],
            [float("nan"), float("inf")] if key.type is float else [],
        )
        for value in value
    ],
)
def test_every_bound_is_kept(name, value):
    message = refusal(put(tiny.get_config(), name, value))
    assert message.startswith(f"{name} = {value!r}") and "give" in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"update.num_minibatches": 33}, ["update.num_minibatches = 33", "32 groups", "32 or less"]),
        ({"rollout.questions_per_step": 31}, ["questions_per_step = 31", "not divisible", "30 or 32"]),
        ({"data.num_questions": 31}, ["data.num_questions = 31", "questions_per_step = 32", "32 or more"]),
        ({"replay.capacity": 0}, ["replay.capacity = 0", "at least 1"]),
        ({"rollout.group_size": 1}, ["rollout.group_size = 1", "at least 2"]),
        (
            {"replay.fraction": 0.03},
            ["replay.fraction = 0.03", "less than one question", "to 34", "to 0.03125", "replay.fraction=0"],
        ),
        ({"zppo.augmentation_fraction": 0.03}, ["zppo.augmentation_fraction = 0.03", "less than one question"]),
        ({"rollout.slots": 7}, ["rollout.slots = 7", "group_size = 8", "8 or more"]),
        ({"prompt.min_pixels": 10_000}, ["prompt.min_pixels = 10000", "prompt.max_pixels = 4096"]),
        ({"prompt.buckets": (192, 48)}, ["prompt.buckets = (192, 48)", "ascending"]),
        ({"prompt.buckets": (48, 48)}, ["prompt.buckets = (48, 48)", "ascending"]),
        ({"prompt.buckets": ()}, ["prompt.buckets = ()", "ascending"]),
        ({"mesh.data": 0}, ["mesh.data = 0", "1 or more", "-1"]),
        ({"mesh.tensor": -1}, ["mesh.fsdp and mesh.tensor = -1", "-1 only once"]),
        ({"mesh.tensor": 0}, ["mesh.tensor = 0", "1 or more", "-1"]),
        ({"teacher.mesh.fsdp": 0}, ["teacher.mesh.fsdp = 0", "1 or more", "-1"]),
        (
            {"teacher.devices": 2, "teacher.path": "recorded:runs/a"},
            ["teacher.devices = 2", "not in this process", "recorded:runs/a", "set 0"],
        ),
        (
            {"model.dtype": "bfloat16", "optimizer.learning_rate": 1e-6},
            ["optimizer.learning_rate = 1e-06", "rounded away", "kahan, master or stochastic", "model.dtype=float32"],
        ),
        (
            {"optimizer.parameter_rounding": "master"},
            ["parameter_rounding = 'master'", "nothing for float32", "rounding=nearest", "model.dtype=bfloat16"],
        ),
        (
            {"optimizer.schedule": "cosine", "optimizer.warmup_steps": 120, "num_steps": 120},
            ["optimizer.warmup_steps = 120", "num_steps = 120", "119 or less"],
        ),
    ],
)
def test_impossible_combinations_are_refused(changes, words):
    tree = tiny.get_config()
    tree.update_from_flattened_dict(changes)
    message = refusal(tree)
    assert all(word in message for word in words), message


def test_a_fraction_of_nothing_is_allowed_when_it_is_zero():
    tree = tiny.get_config()
    tree.update_from_flattened_dict({"replay.fraction": 0.0, "zppo.augmentation_fraction": 0.0})
    tree.update_from_flattened_dict({"rollout.questions_per_step": 2, "update.num_minibatches": 1})
    assert from_config_dict(tree).replay.fraction == 0


@pytest.mark.parametrize("count", [1, 2, 3, 7, 31, 384, 999_983])
@pytest.mark.parametrize("fraction", [1e-9, 0.03, 0.29, 1 / 3])
def test_the_advice_for_a_share_of_nothing_helps(fraction, count):
    fault = step_size.share_fault("replay.fraction", fraction, count)
    if fault is None:
        assert step_size.share_of_step("replay.fraction", fraction, count) >= 1
        return
    questions, larger = re.findall(r"_step to (\d+) or replay.fraction to ([^ ,]+),", fault)[0]
    assert step_size.share_of_step("replay.fraction", fraction, int(questions)) == 1
    assert step_size.share_of_step("replay.fraction", float(larger), count) == 1


def test_a_share_is_checked_as_it_is_taken():
    """In binary a third of three is one; in decimal, 0.3333333333333333 of three is less."""
    changes = {"rollout.questions_per_step": 3, "update.num_minibatches": 1, "zppo.augmentation_fraction": 0.5}
    tree = tiny.get_config()
    tree.update_from_flattened_dict({**changes, "replay.fraction": 1 / 3})
    assert "less than one question" in refusal(tree)
    with pytest.raises(ValueError, match="less than one question"):
        step_size.share_of_step("replay.fraction", 1 / 3, 3)


MAY_CHANGE = {
    *("num_steps", "data.threads", "model.remat", "reward.num_workers", "rollout.slots", "rollout.cache_gigabytes"),
    *(f"{mesh}.{axis}" for mesh in ("mesh", "rollout.mesh", "teacher.mesh") for axis in ("data", "fsdp", "tensor")),
    *("update.row_tokens", "update.prompts_per_row", "update.rows_per_microbatch"),
    *("checkpoint.every", "checkpoint.keep", "checkpoint.keep_best"),
    *("log.samples_max_megabytes", "log.samples_keep", "log.tensorboard"),
    *(f"judge.{key}" for key in ("endpoint", "concurrency", "timeout_seconds", "retries", "deadline_seconds")),
    *("teacher.path", "teacher.record", "teacher.model", "teacher.devices"),
    *(f"teacher.{key}" for key in ("concurrency", "timeout_seconds", "retries", "deadline_seconds")),
    *("profile.step", "watchdog.max_skipped", "watchdog.host_seconds"),
}


def test_which_keys_may_change_when_a_run_is_continued():
    assert {name for name, key in KEYS.items() if key.setting.may_change} == MAY_CHANGE
    assert KEYS.keys() - binding(from_config_dict(tiny.get_config())).keys() == MAY_CHANGE


def test_a_key_of_another_version_may_change_where_its_whole_section_may():
    known = to_json(from_config_dict(tiny.get_config()))
    old = known | {"log": known["log"] | {"colour": "red"}, "reward": known["reward"] | {"colour": "red"}}
    assert changed_keys(old, known) == {"reward.colour": ("red", "absent")}


def test_changed_keys_survive_a_round_through_the_file():
    old = to_json(from_config_dict(tiny.get_config()))
    assert changed_keys(json.loads(json.dumps(old)), old) == {}
    tree = tiny.get_config()
    tree.update_from_flattened_dict({"num_steps": 999, "rollout.group_size": 4, "prompt.buckets": (64,)})
    new = to_json(from_config_dict(tree))
    assert changed_keys(old, new) == {"prompt.buckets": ([20, 64, 192], [64]), "rollout.group_size": (8, 4)}
    assert "num_steps" in changed_keys(old, new, ignore=())
    del old["update"]["clip_low"]
    assert changed_keys(old, new)["update.clip_low"] == ("absent", 0.2)


@pytest.mark.parametrize("path", ["http://u:sec/ret@h:8000/v1", "HTTP://u:secret@h/v1", "http://a/v1,ftp://u:secret@b"])
def test_a_password_in_an_address_is_refused_and_not_shown(path):
    tree = tiny.get_config()
    tree.teacher.path, tree.teacher.model = path, "m"
    with pytest.raises(ConfigError, match=r"teacher.path holds a user name, password or query") as caught:
        from_config_dict(tree)
    assert "sec" not in str(caught.value).replace("seconds", "")
