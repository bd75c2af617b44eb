"""The table of methods and the names that others import."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from zppo_jax.zppo import METHODS, Method, ReplayBuffer, get_method, reformulate, select


def test_the_table_is_that_of_the_paper():
    rows = {name: (method.uses_replay, method.reformulations, method.needs_teacher) for name, method in METHODS.items()}
    assert rows == {
        "grpo": (False, (), False),
        "grpo_replay": (True, (), False),
        "grpo_both": (False, ("bcq", "ncq"), True),
        "grpo_replay_bcq": (True, ("bcq",), True),
        "grpo_replay_ncq": (True, ("ncq",), False),
        "zppo": (True, ("bcq", "ncq"), True),
    }
    assert all(name == method.name for name, method in METHODS.items())
    assert [name for name, method in METHODS.items() if not method.needs_summaries] == ["grpo", "grpo_replay"]
    assert get_method("zppo").summary == "GRPO + replay buffer + BCQ + NCQ"
    assert get_method("grpo").summary == "GRPO"


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"method='zpo' is unknown.*grpo_replay_bcq.*zppo"):
        get_method("zpo")
    with pytest.raises(ValueError, match=r"'hnt'.*bcq, ncq"):
        Method("grpo_replay_hint", uses_replay=True, reformulations=("hnt",))


def test_the_names_that_others_import():
    assert inspect.isclass(ReplayBuffer) and inspect.isfunction(reformulate) and inspect.isfunction(select.hard)


def test_the_package_runs_without_jax():
    code = "import sys, zppo_jax.prompts, zppo_jax.zppo; assert not {'jax', 'torch', 'transformers'} & set(sys.modules)"
    environment = {"PYTHONPATH": ":".join(sys.path), "JAX_PLATFORMS": "nonexistent"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
