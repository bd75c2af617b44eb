"""Requests to several endpoints, against real ones in separate processes that die, come back and ask for pauses."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests import runs
from tests.remote.processes import Scripted
from zppo_jax.errors import ConfigError
from zppo_jax.remote import MAX_FAILURES, Requests, Role, Unanswered, asking
from zppo_jax.remote.health import Health, choose
from zppo_jax.remote.retry_after import retry_after

KEY = "a-secret-key"
ROLE = Role("teacher", "teacher.path", "ZPPO_TEACHER_API_KEY")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Scripted, Scripted]]:
    pytest.importorskip("openai")
    folder = tmp_path_factory.mktemp("endpoints")
    with Scripted("tests.remote.scripted", folder / "a") as one, Scripted("tests.remote.scripted", folder / "b") as two:
        yield one, two


def content_of(reply: Any) -> str:
    return reply.choices[0].message.content


class Asked:
    """Requests to these endpoints, and what they printed for the user."""

    def __init__(self, urls: list[str], **limits: Any) -> None:
        settings = {"concurrency": 8, "retries": 1, "timeout_seconds": 2.0, "max_bytes": 1 << 20, "rest_seconds": 0.5}
        self.said: list[str] = []
        self.requests = Requests(urls, ROLE, report=self.said.append, **settings | limits)

    def ask(self, model: str, count: int = 1, seconds: float = 20.0) -> list[str | Unanswered]:
        body = {"model": model, "messages": [{"role": "user", "content": "?"}]}
        futures = [
            self.requests.submit(lambda: body, lambda reply: reply.choices[0].message.content) for _ in range(count)
        ]
        outcomes = [(future.exception(seconds), future) for future in futures]
        return [error if isinstance(error, Unanswered) else future.result() for error, future in outcomes]


@pytest.fixture
def make() -> Iterator[Callable[..., Asked]]:
    made: list[Asked] = []

    def asked(urls: list[str], **limits: Any) -> Asked:
        made.append(Asked(urls, **limits))
        return made[-1]

    yield asked
    for one in made:
        one.requests.close()


def test_the_least_busy_endpoint_is_asked(make, pair):
    asked = make([one.url for one in pair])
    assert asked.ask("fine:0.3", 8) == ["good"] * 8
    assert [len(one.requests("fine:0.3")) for one in pair] == [4, 4]


def test_an_endpoint_that_nobody_listens_at_costs_nothing(make, pair):
    dead = f"http://127.0.0.1:{runs.free_port()}/v1"
    asked = make([dead, pair[0].url], concurrency=1)
    assert asked.ask("fine", 9) == ["good"] * 9
    assert len(asked.said) == 1 and dead in asked.said[0] and "left alone" in asked.said[0]


def test_the_answer_of_another_endpoint_needs_an_attempt(make, pair, tmp_path):
    """A request goes on elsewhere after the endpoint died in the middle of its reply, at once."""
    with Scripted("tests.remote.scripted", tmp_path / "log") as dying:
        asked = make([dying.url, pair[0].url], concurrency=1)
        pair[0].log.with_suffix(".died").touch()  # that one answers
        start = time.monotonic()
        assert asked.ask("dies") == ["good"] and time.monotonic() - start < 2.0
        assert dying.process is not None and dying.process.wait(5) == 1


def test_an_endpoint_that_comes_back_is_asked_again(make, pair, tmp_path):
    """At the same port: in the next step, and in the same one after a pause. One request tries it for all the others,
    and loses nothing if it is still away."""
    returning = Scripted("tests.remote.scripted", tmp_path / "log")
    asked = make([returning.url, pair[0].url], retries=0)
    outcomes = asked.ask("fine", 12)
    assert outcomes.count("good") >= 12 - 8 and asked.ask("fine", 12) == ["good"] * 12
    asked.requests.begin()
    assert asked.ask("fine", 12) == ["good"] * 12, "whoever tries it takes the other one then"
    with returning:
        asked.requests.begin()
        assert asked.ask("fine", 12) == ["good"] * 12 and returning.requests("fine")
    asked.ask("fine", 2 * MAX_FAILURES * 8)
    with returning:
        end, before = time.monotonic() + 10, len(returning.requests("fine"))
        while len(returning.requests("fine")) == before and time.monotonic() < end:
            assert asked.ask("fine", 2) == ["good"] * 2
        assert len(returning.requests("fine")) > before, "without a new step"


def test_a_single_endpoint_that_is_down_costs_one_attempt_after_each_pause(make, pair):
    asked = make([pair[0].url], retries=0, concurrency=1, rest_seconds=60.0)
    assert [str(one)[:10] for one in asked.ask("status:500", 30)] == ["status 500"] * 30
    assert len(pair[0].requests("status:500")) == MAX_FAILURES
    asked.requests.begin()
    asked.ask("status:500", 30)
    assert len(pair[0].requests("status:500")) == MAX_FAILURES + 1
    assert asked.ask("fine") != ["good"], "it rests"
    asked.requests.begin()
    assert asked.ask("fine", 3) == ["good"] * 3
    assert all("left alone for 60 s" in line for line in asked.said[:1]) and len(asked.said) == 2


def test_a_pause_that_is_asked_for_is_kept(make, pair):
    """By every request; the least that the header may say is a second."""
    asked = make([pair[0].url], concurrency=1)
    assert asked.ask("busy:1", 2) == ["good"] * 2
    first, *rest = [row["time"] for row in pair[0].requests("busy:1")]
    assert len(rest) == 2 and min(rest) - first >= 1.0


def test_a_pause_longer_than_the_deadline_is_not_waited_for(make, pair):
    asked, start = make([pair[1].url], longest_pause=5.0), time.monotonic()
    (failure,) = asked.ask("busy:60")
    assert isinstance(failure, Unanswered) and "status 429" in str(failure) and time.monotonic() - start < 3.0
    assert "left alone for 60 s" in asked.said[0]
    both = make([one.url for one in pair], longest_pause=5.0)
    assert both.ask("busy:60") == ["good"], "the other one, which was busy before, takes it"


def test_an_endpoint_that_hangs_costs_seconds_in_the_next_step_and_not_a_request(make, pair, monkeypatch):
    """It takes connections, and never answers: the look at its models ends first."""
    monkeypatch.setattr(asking, "_CHECK_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        url = f"http://127.0.0.1:{hanging.getsockname()[1]}/v1"
        asked = make([url], retries=0, timeout_seconds=1.5, model="fine")
        asked.ask("fine", 3)
        asked.requests.begin()
        start = time.monotonic()
        assert {one.cause for one in asked.ask("fine", 20) if isinstance(one, Unanswered)} == {"timeout", "unavailable"}
        assert time.monotonic() - start < 1.2


def test_what_is_given_up_is_late_and_the_next_step_goes_on(make, pair):
    asked = make([one.url for one in pair])
    open_one = asked.requests.submit(lambda: {"model": "silent", "messages": []}, str)
    time.sleep(0.3)
    asked.requests.give_up("the time is over")
    (late,) = asked.ask("fine")
    assert open_one.cancelled() and isinstance(late, Unanswered) and late.cause == "late"
    assert len(asked.said) == 1 and "the time is over" in asked.said[0]
    asked.requests.begin()
    assert asked.ask("fine") == ["good"]


@pytest.mark.parametrize(
    ("model", "cause"),
    [("silent", "timeout"), ("status:500", "unavailable"), ("cut", "unavailable"), ("status:400", "refused"),
     ("status:401", "refused"), ("garbage", "malformed"), ("huge", "malformed"), ("empty", "malformed")],
)  # fmt: skip
def test_the_cause_of_a_failure(make, pair, model, cause):
    (failure,) = make([pair[0].url], retries=0, timeout_seconds=0.7).ask(model)
    assert isinstance(failure, Unanswered) and failure.cause == cause, failure


def test_a_body_that_cannot_be_made_costs_its_request_only(make, pair):
    asked = make([pair[0].url])
    failure = asked.requests.submit(lambda: 1 // 0, str).exception(5)  # type: ignore[arg-type]
    assert isinstance(failure, Unanswered) and failure.cause == "refused" and "ZeroDivision" in str(failure)
    assert asked.ask("fine", 3) == ["good"] * 3 and not asked.said


def test_endpoints_say_which_models_they_have(make, pair):
    dead = f"http://127.0.0.1:{runs.free_port()}/v1"
    pair[0].name_models("one", "two")
    named, missing = make([pair[0].url, dead]).requests.check()
    assert named.names == ("one", "two") and named.fault is None
    assert missing.names == () and missing.fault is not None and missing.fault.cause == "unavailable"


def test_no_other_secret_of_the_environment_is_sent(make, pair, monkeypatch):
    """The client would add what these hold to every request."""
    for name, value in (("ORG_ID", "org"), ("PROJECT_ID", "project"), ("CUSTOM_HEADERS", "X-Custom: secret")):
        monkeypatch.setenv(f"OPENAI_{name}", value)
    assert make([pair[0].url]).ask("fine:0.02") == ["good"]
    (row,) = pair[0].requests("fine:0.02")
    assert "authorization" in row["headers"] and not {"x-custom", "openai-organization", "openai-project"} & {
        *row["headers"]
    }


def test_the_key_is_sent_and_shown_nowhere(make, pair, monkeypatch):
    monkeypatch.setenv(ROLE.key_variable, f" {KEY}\n")
    asked = make([pair[0].url], retries=0)
    assert asked.ask("fine:0.01") == ["good"] and pair[0].requests("fine:0.01")[0]["key"] == f"Bearer {KEY}"
    shown = [*asked.said, *map(repr, asked.ask("says_key", 4)), *map(str, asked.ask("says_key", 4))]
    assert len(shown) >= 8 and not any(KEY in line for line in shown)
    monkeypatch.setenv(ROLE.key_variable, f"{KEY}\nX-Other: 1")
    with pytest.raises(ConfigError, match=ROLE.key_variable) as refused:
        make([pair[0].url])
    assert KEY not in str(refused.value)


def test_the_rest_grows_until_an_answer_comes():
    one, now, rests = Health("a", rest=5.0), 0.0, []
    for _ in range(9):
        for _ in range(MAX_FAILURES):
            one.failed(Unanswered("away"), now)
        rests.append(one.tried_at - now)
        now = one.tried_at
        assert choose([one], (), now) is one and one.doubted
    assert rests[:4] == [5.0, 10.0, 20.0, 40.0] and rests[-1] == 300.0
    one.answered()
    for _ in range(MAX_FAILURES):
        one.failed(Unanswered("away"), now)
    assert one.tried_at - now == 5.0


def test_requests_that_are_not_taken_say_nothing_about_an_endpoint_that_takes_others():
    one = Health("a", rest=5.0)
    one.answered()
    for _ in range(10):
        assert not one.failed(Unanswered("no", "refused", again=False), 0.0)
    one.begin(gave_up=True)
    assert not one.doubted, "it was slow, and there"
    one.begin(gave_up=True)
    assert one.doubted and not one.failed(Unanswered("no", "refused", again=False), 0.0) and not one.doubted
    other = Health("b", rest=5.0)
    falls = [other.failed(Unanswered("no", "refused", again=False), 0.0) for _ in range(MAX_FAILURES)]
    assert falls == [False] * (MAX_FAILURES - 1) + [True]
    third = Health("c", rest=5.0)
    assert not any(third.failed(Unanswered("", "too_long", again=False), 0.0) for _ in range(10))


def test_retry_after_is_seconds_or_a_date():
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    assert 28 < retry_after(date) <= 30 and retry_after("7") == 7
    assert [retry_after(one) for one in (None, "", "-3", "nan", "inf", "soon", "1e999")] == [0] * 7
