"""The section judge: what it accepts, and what a run without a judge refuses."""

from __future__ import annotations

import pytest

from configs import tiny
from zppo_jax.config import from_config_dict
from zppo_jax.errors import ConfigError
from zppo_jax.rewards.answer_types import types_fault

URL = "http://host:8000/v1"


def configured(**keys):
    tree = tiny.get_config()
    tree.update_from_flattened_dict({f"judge.{key}": value for key, value in keys.items()})
    return from_config_dict(tree)


@pytest.mark.parametrize(
    "keys",
    [{}, {"endpoint": "teacher"}, {"endpoint": URL, "model": "m"}, {"endpoint": "https://h/v1", "model": "m"},
     {"model": "m", "deadline_seconds": 1e6}],
)  # fmt: skip
def test_what_can_work_is_accepted(keys):
    configured(**keys)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"endpoint": URL}, "judge.model is empty"),
        ({"endpoint": "teacher", "model": "m"}, "judge.model = 'm' is for an endpoint"),
        ({"endpoint": "host:8000", "model": "m"}, "'host:8000' is not an address"),
        ({"endpoint": "file:///etc/passwd", "model": "m"}, "is not an address"),
        ({"endpoint": "http://", "model": "m"}, "is not an address"),
        ({"endpoint": "http://h:99999/v1", "model": "m"}, "is not an address"),
        ({"endpoint": "http://[h/v1", "model": "m"}, "is not an address"),
        ({"endpoint": "Teacher", "model": ""}, "'Teacher' is not an address: give 'teacher'"),
        ({"endpoint": URL, "model": "m", "deadline_seconds": 1800.0}, "not below watchdog.host_seconds = 1800"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(keys, words):
    with pytest.raises(ConfigError, match=words) as refused:
        configured(**keys)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("url", ["http://me:secret@host/v1", "http://secret@host/v1", "http://host/v1?key=secret"])
def test_no_secret_reaches_the_configuration_or_the_message(url):
    with pytest.raises(ConfigError, match="ZPPO_JUDGE_API_KEY") as refused:
        configured(endpoint=url, model="m")
    assert "secret" not in str(refused.value)


def test_golds_that_nobody_can_score_are_named_and_counted():
    counts = {"math": 90, "free_form": 10}
    fault = types_fault(counts, has_judge=False)
    assert fault and "10 of the 100 questions" in fault and "10 free_form" in fault and "judge.endpoint" in fault
    assert types_fault(counts, has_judge=True) is None
    assert types_fault({"math": 5, "free_form": 0}, has_judge=False) is None
    assert "3 golds of type 'essay'" in (types_fault({"essay": 3, "math": 1}, has_judge=True) or "")
