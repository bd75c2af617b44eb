"""The judge at an endpoint, against a real one in its own process that is honest, broken, slow or gone."""

from __future__ import annotations

import builtins
import threading
import time

import pytest

from configs import tiny
from tests.judge.conftest import cases
from tests.remote.processes import Scripted
from zppo_jax.config import from_config_dict
from zppo_jax.errors import ConfigError
from zppo_jax.judge import Case, Ruling
from zppo_jax.remote import MAX_FAILURES
from zppo_jax.setup.judging import make_judge

CORRECT, WRONG, MALFORMED, FAILED = Ruling.CORRECT, Ruling.WRONG, Ruling.MALFORMED, Ruling.FAILED


def test_rulings_come_in_order_and_each_case_is_asked_once(make, endpoint):
    judge = make("honest-first").judge
    asked = [*cases(6), *cases(6, response="Rain"), *cases(6)]
    before = len(endpoint.requests("honest-first"))
    judge.ahead(asked[:8])
    assert judge.decide(asked) == [WRONG] * 6 + [CORRECT] * 6 + [WRONG] * 6
    assert len(endpoint.requests("honest-first")) - before == 12
    assert judge.counts() == {"judged": 12, "cached": 6, "malformed": 0, "failed": 0}


def test_the_request_is_the_papers(make, endpoint):
    make("honest-last").judge.decide(cases(1))
    body = endpoint.requests("honest-last")[-1]["body"]
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.0, 1.0, 64)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


@pytest.mark.parametrize("output", ['{"verdict": "CORRECT"}', "correct", '```json\n{"verdict": "correct"}\n```', ""])
def test_an_output_that_is_no_verdict_is_wrong_and_counted(make, output):
    made = make(f"says:{output}")
    assert made.judge.decide(cases(3)) == [MALFORMED] * 3
    assert made.judge.counts() == {"judged": 3, "cached": 0, "malformed": 3, "failed": 0} and not made.said


@pytest.mark.parametrize(
    "model",
    ["status:500", "status:429", "garbage", "half", "no_completion", "empty", "silent", "after_headers", "drip", "huge",
     "huge_error", "cut"],
)  # fmt: skip
def test_an_endpoint_that_gives_no_output_leaves_responses_undecided(make, endpoint, model):
    """Whatever it does, it is asked again first, the user is told, and it takes no longer than the limits say."""
    made, start = make(model, timeout=0.6), time.monotonic()
    assert made.judge.decide(cases(2)) == [FAILED] * 2
    assert time.monotonic() - start < 6.0
    assert made.judge.counts()["failed"] == 2 and len(endpoint.requests(model)) == 4
    assert len(made.said) == 1 and "in 2 attempts" in made.said[0] and endpoint.url in made.said[0]


@pytest.mark.parametrize("model", ["status:401", "status:404"])
def test_a_wrong_key_or_model_is_not_asked_again(make, endpoint, model, monkeypatch):
    """And no message holds the key, or moves the cursor."""
    monkeypatch.setenv("ZPPO_JUDGE_API_KEY", "secret-key")
    made = make(model, concurrency=1)
    assert made.judge.decide(cases(20)) == [FAILED] * 20
    assert [row["key"] for row in endpoint.requests(model)] == ["Bearer secret-key"]
    assert len(made.said) == 2 and model.replace(":", " ") in made.said[1]
    assert not any("secret" in line or "\x1b" in line for line in made.said)


def test_the_key_of_another_service_goes_nowhere(make, endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "for-somebody-else")
    monkeypatch.delenv("ZPPO_JUDGE_API_KEY", raising=False)
    make("honest-loose").judge.decide(cases(1))
    assert endpoint.requests("honest-loose")[-1]["key"] == "Bearer none"


def test_a_teacher_at_a_server_judges_with_its_key_and_its_model(endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("ZPPO_TEACHER_API_KEY", "for-the-teacher")
    monkeypatch.setenv("ZPPO_JUDGE_API_KEY", "for-the-judge")
    tree, said = tiny.get_config(), list[str]()
    tree.teacher.update({"path": endpoint.url, "model": "honest-heading"})
    tree.judge.endpoint = "teacher"
    judge = make_judge(from_config_dict(tree), tmp_path, tmp_path, said.append)
    assert judge is not None
    judge.begin(1)
    assert judge.decide(cases(2)) == [WRONG] * 2 and not said
    assert {row["key"] for row in endpoint.requests("honest-heading")[-2:]} == {"Bearer for-the-teacher"}
    judge.close()


def test_a_short_failure_costs_an_attempt(make):
    made = make("flaky:2", retries=2, concurrency=1)
    assert made.judge.decide(cases(4)) == [WRONG] * 4 and not made.said


def test_one_case_that_the_endpoint_cannot_take_does_not_cost_the_others(make):
    made = make("poison", retries=0, concurrency=1)
    asked = [Case("poison", "rain", "snow"), *cases(5), Case("poison", "rain", "hail"), *cases(5, response="rain")]
    assert made.judge.decide(asked) == [FAILED] + [WRONG] * 5 + [FAILED] + [CORRECT] * 5
    assert len(made.said) == 1


def test_an_endpoint_that_is_down_costs_its_limits_once_in_a_step(make, endpoint):
    """After three cases no other is sent in this step; the next step sends one, to see."""
    made = make("silent", timeout=0.3, retries=0, concurrency=3)
    before = len(endpoint.requests("silent"))
    start = time.monotonic()
    assert made.judge.decide(cases(60)) == [FAILED] * 60
    assert made.judge.decide(cases(40, response="hail")) == [FAILED] * 40
    assert time.monotonic() - start < 4.0
    assert len(endpoint.requests("silent")) - before <= MAX_FAILURES + 3
    assert len(made.said) == 2 and "not asked again in this step" in made.said[1]
    before = len(endpoint.requests("silent"))
    made.judge.begin(2)
    assert made.judge.decide(cases(60)) == [FAILED] * 60
    assert len(endpoint.requests("silent")) - before == 1 and len(made.said) == 4


def test_the_deadline_is_for_the_whole_step(make, endpoint):
    made = make("silent", timeout=30.0, retries=0, concurrency=100, deadline=0.7)
    start = time.monotonic()
    assert made.judge.decide(cases(50)) == [FAILED] * 50
    assert made.judge.decide(cases(50, response="hail")) == [FAILED] * 50
    assert 0.7 < time.monotonic() - start < 3.0
    assert made.judge.counts()["failed"] == 100 and 0.7 < made.judge.seconds < 3.0
    assert "deadline_seconds = 0.7" in made.said[0]


def test_an_endpoint_that_dies_and_comes_back(make, tmp_path):
    """In the middle of a reply; in the next step it is asked as before, and what had failed is decided."""
    scripted = Scripted("tests.judge.scripted", tmp_path / "log")
    scripted.start()
    made = make("dies", url=scripted.url, retries=1)
    try:
        assert made.judge.decide(cases(4)) == [FAILED] * 4
        assert scripted.process is not None and scripted.process.wait(5) == 1
        made.judge.begin(2)
        assert made.judge.decide(cases(4)) == [FAILED] * 4, "nobody listens there"
        scripted.start()
        made.judge.begin(3)
        assert made.judge.decide(cases(9)) == [WRONG] * 9
        assert made.judge.counts() == {"judged": 9, "cached": 0, "malformed": 0, "failed": 0}
    finally:
        scripted.stop()


def test_a_judge_that_is_closed_while_it_asks_leaves_no_thread(make):
    made = make("silent", timeout=30.0)
    made.judge.ahead(cases(5))
    time.sleep(0.2)
    made.judge.close()
    assert not any(thread.name == "judge" and thread.is_alive() for thread in threading.enumerate())


def test_an_interruption_ends_the_waiting(make):
    """As Ctrl-C does, by way of the report."""

    def report(line: str) -> None:
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        make("silent", timeout=30.0).judge.decide(cases(2), report)
    assert time.monotonic() - start < 3.0


def test_without_the_package_one_line_says_what_to_install(make, monkeypatch):
    real = builtins.__import__

    def without(name, *args):
        if name == "openai":
            raise ImportError
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"^judge\.endpoint = .* pip install 'zppo-jax\[judge\]'$"):
        make("honest-first")
