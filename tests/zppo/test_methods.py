"""The table of methods and the names that others import."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys

import pytest

from configs import paper
from zppo_jax.config import Config, from_config_dict
from zppo_jax.errors import ConfigError
from zppo_jax.zppo import METHODS, Method, ReplayBuffer, get_method, reformulate, select

PAPER = from_config_dict(paper.get_config())


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
    assert [name for name, method in METHODS.items() if not method.needs_teacher(PAPER)] == ["grpo", "grpo_replay"]
    assert all(method.learns_from == "student" and not method.whole_batch for method in METHODS.values())
    assert all((method.credit, method.objective) == ("group_relative", "clipped") for method in METHODS.values())
    assert not any(method.reference for method in METHODS.values())
    assert not any(method.needs_texts for method in METHODS.values()), "summaries have a fallback"
    assert get_method("zppo").summary == "GRPO + replay buffer + BCQ + NCQ"
    assert get_method("grpo").summary == "GRPO"


def test_a_teacher_is_needed_to_help_to_learn_from_and_to_compare_with():
    """It answers only for BCQ, writes for both kinds of prompts, and is loaded if any of this is needed: not for NCQ
    without summaries, nor for prompts when there is room for none."""
    plain = Method("plain", uses_replay=False, helps=())
    rows = {
        "nothing": plain,
        "ncq": dataclasses.replace(plain, helps=("ncq",)),
        "bcq": dataclasses.replace(plain, helps=("bcq",)),
        "pupil": dataclasses.replace(plain, learns_from="teacher"),
        "reference": dataclasses.replace(plain, reference=True),
    }

    def needs(row: Method, config: Config) -> str:
        found = (row.teacher_answers(config), row.teacher_writes(config), row.loads_teacher(config))
        assert row.needs_teacher(config) == any(found[:2])
        return "".join(letter for letter, wanted in zip("awl", found, strict=True) if wanted)

    bare = dataclasses.replace(PAPER.teacher.compress, enabled=False)
    bare = dataclasses.replace(PAPER, teacher=dataclasses.replace(PAPER.teacher, compress=bare))
    full = dataclasses.replace(PAPER, zppo=dataclasses.replace(PAPER.zppo, augmentation_fraction=0.0))
    wanted = {"nothing": ",,", "ncq": "wl,,", "bcq": "awl,al,", "pupil": "al,al,al", "reference": "l,l,l"}
    found = {name: ",".join(needs(row, one) for one in (PAPER, bare, full)) for name, row in rows.items()}
    assert found == wanted
    with pytest.raises(ValueError, match="method pupil: the student answers prompts with help"):
        Method("pupil", uses_replay=False, helps=("bcq",), learns_from="teacher")


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
