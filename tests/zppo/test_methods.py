"""The table of methods and the names that others import."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys

import pytest

from zppo_jax.errors import ConfigError
from zppo_jax.zppo import METHODS, Method, ReplayBuffer, get_method, reformulate, select


def test_the_table_is_that_of_the_paper():
    rows = {name: (method.uses_replay, method.helps, method.asks_teacher) for name, method in METHODS.items()}
    assert rows == {
        "grpo": (False, (), False),
        "grpo_replay": (True, (), False),
        "grpo_both": (False, ("bcq", "ncq"), True),
        "grpo_replay_bcq": (True, ("bcq",), True),
        "grpo_replay_ncq": (True, ("ncq",), False),
        "zppo": (True, ("bcq", "ncq"), True),
    }
    assert all(name == method.name for name, method in METHODS.items())
    assert [name for name, method in METHODS.items() if not method.needs_teacher] == ["grpo", "grpo_replay"]
    assert all(method.learns_from == "student" and not method.whole_batch for method in METHODS.values())
    assert all((method.credit, method.objective) == ("group_relative", "clipped") for method in METHODS.values())
    assert all(method.loads_teacher == method.needs_teacher for method in METHODS.values()), "and no reference model"
    assert not any(method.needs_texts for method in METHODS.values()), "summaries have a fallback"
    assert get_method("zppo").summary == "GRPO + replay buffer + BCQ + NCQ"
    assert get_method("grpo").summary == "GRPO"


def test_a_teacher_is_needed_to_help_to_learn_from_and_to_compare_with():
    """It answers only for BCQ, writes for both kinds of prompts, and is loaded if any of this is needed."""
    plain = Method("plain", uses_replay=False, helps=())
    rows = {
        "nothing": plain,
        "ncq": dataclasses.replace(plain, helps=("ncq",)),
        "bcq": dataclasses.replace(plain, helps=("bcq",)),
        "pupil": dataclasses.replace(plain, learns_from="teacher"),
        "reference": dataclasses.replace(plain, reference=True),
    }
    wanted = {name: (row.asks_teacher, row.needs_teacher, row.loads_teacher) for name, row in rows.items()}
    assert wanted == {
        "nothing": (False, False, False),
        "ncq": (False, True, True),
        "bcq": (True, True, True),
        "pupil": (False, True, True),
        "reference": (False, False, True),
    }


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"method = 'zpo': there is no such method.*grpo_replay_bcq.*zppo"):
        get_method("zpo")
    with pytest.raises(ValueError, match=r"'hnt'.*bcq, ncq"):
        Method("grpo_replay_hint", uses_replay=True, helps=("hnt",))


def test_the_names_that_others_import():
    assert inspect.isclass(ReplayBuffer) and inspect.isfunction(reformulate) and inspect.isfunction(select.hard)


def test_the_package_runs_without_jax():
    code = "import sys, zppo_jax.zppo; assert not {'jax', 'torch', 'transformers'} & set(sys.modules)"
    environment = {"PYTHONPATH": ":".join(sys.path), "JAX_PLATFORMS": "nonexistent"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
