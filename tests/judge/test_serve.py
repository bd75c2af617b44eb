"""The judge against our own server, in its own process: a model that cannot judge is wrong every time, and counted."""

from __future__ import annotations

import pytest

from tests.judge.conftest import cases
from tests.remote.processes import OurServer
from zppo_jax.files import SHIPPED
from zppo_jax.judge import Case, Ruling

KEY = "a-key-of-the-server"


@pytest.fixture(scope="module")
def server(compilation_folder):
    for library in ("starlette", "uvicorn", "openai"):
        pytest.importorskip(library)
    flags = ["--served_model_name=tiny", "--num_slots=4", "--max_prompt_tokens=2048", "--max_new_tokens=16"]
    with OurServer(SHIPPED / "student", flags, KEY) as ours:
        yield ours.url


@pytest.mark.slow
def test_what_a_small_model_writes_is_no_verdict(make, server, monkeypatch):
    monkeypatch.setenv("ZPPO_JUDGE_API_KEY", KEY)
    made = make("tiny", url=server, timeout=60.0, concurrency=3, deadline=120.0, max_tokens=16)
    assert made.judge.decide(cases(6)) == [Ruling.MALFORMED] * 6
    assert made.judge.counts() == {"judged": 6, "cached": 0, "malformed": 6, "failed": 0} and not made.said
    long = Case("why? " * 3000, "rain", "snow")
    assert made.judge.decide([long, *cases(1, gold="hail")]) == [Ruling.FAILED, Ruling.MALFORMED]
    assert "status 4" in made.said[0] and "in 1 attempt (" in made.said[0], "only this request is refused"


@pytest.mark.slow
def test_the_server_wants_its_key_and_its_name(make, server, monkeypatch):
    monkeypatch.setenv("ZPPO_JUDGE_API_KEY", "another")
    locked = make("tiny", url=server, timeout=60.0, max_tokens=16)
    assert locked.judge.decide(cases(3)) == [Ruling.FAILED] * 3 and "status 401" in locked.said[0]
    monkeypatch.setenv("ZPPO_JUDGE_API_KEY", KEY)
    unknown = make("huge-model", url=server, timeout=60.0, max_tokens=16)
    assert unknown.judge.decide(cases(3)) == [Ruling.FAILED] * 3 and "status 404" in unknown.said[0]
